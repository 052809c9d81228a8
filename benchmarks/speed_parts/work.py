"""What is timed without Flower: the plain loop over users, and this app's engine, on equal work.

Both train the same users, drawn by hash, from the same arrays, in rounds that are numbered as the
app numbers them.
"""

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from client_app.data.content import content_dims, open_content
from client_app.data.dataset import Dataset, Rows, input_lengths, open_dataset, split_view
from client_app.memory.on_device import recall_of
from client_app.training.batch_size import ON_CPU
from client_app.training.mixture_objective import MixtureObjective
from client_app.training.train import Mixing, train_round
from server_app.nodes.fitting import fitted
from shared_model.device import torch_device
from shared_model.errors import WorkerError
from shared_model.model.matmul import plain_products
from shared_model.model.recommender import Arrays, Recommender, build, freeze, read_groups
from shared_model.protocol.config import Settings, Value, parse_settings
from shared_model.protocol.lengths import count_lengths, read_lengths
from shared_model.protocol.plan import RoundPlan
from shared_model.stages import stage_of

_FROZEN = "frozen"  # the backbone of all rounds


@dataclass(frozen=True)
class Work:
    """A stage's rounds on the users of one folder."""

    model: Recommender
    dataset: Dataset
    settings: Settings
    plan: RoundPlan
    mixing: Mixing | None
    kept: bool  # memories are simulated before, once, as far as Stage 3's backbone is concerned

    def rows(self, partition: int = 0, partitions: int = 1) -> Rows:
        """The users that a node hosts."""
        return np.arange(partition, self.dataset.num_users, partitions)

    def round(self, number: int) -> RoundPlan:
        """The plan of a round."""
        return replace(self.plan, round=number)

    def mixing_in(self, number: int) -> Mixing | None:
        """What Stages 2 and 3 need in a round; Stage 3's backbone is another one in each of them,
        so surprise is new."""
        if self.mixing is None:
            return None
        plan, recall = self.mixing
        frozen = self.kept or self.plan.stage == 2
        return plan, recall.with_backbone(_FROZEN if frozen else str(number))

    def remember(self, rows: Rows) -> None:
        """Simulate the memories of all rounds to come, as the engine does: for many users at once.

        Who then trains each user alone pays no more for them than who trains batches.
        """
        if self.mixing is None or not self.kept:
            return
        plan, recall = self.mixing
        recall = recall.with_backbone(_FROZEN)
        size = self.settings.users_per_batch or ON_CPU
        for begin in range(0, len(rows), size):
            batch = rows[begin : begin + size]
            ends = [np.array([length]) for length in self.dataset.train_lengths(batch)]
            recall.memories(self.model, batch, ends, recall.settings(plan))


def open_work(config: dict[str, Value], stage: int, kept: bool = False) -> Work:
    """A fresh model of a stage, the dataset of the run-config, and what a node would be told."""
    given = parse_settings(config)
    dataset = open_dataset(Path(given.dataset))
    everyone = np.arange(dataset.num_users)
    lengths = read_lengths(count_lengths(input_lengths(dataset, everyone, "test")))
    interactions = int(dataset.lengths(everyone).sum())
    settings = fitted(given, stage_of(stage), interactions, [lengths])
    dims = content_dims(dataset) if dataset.features_sha256 else (0, 0)
    shape = settings.shape(dataset.num_items, *dims)
    device = torch_device(settings.device)
    model = build(shape, settings.seed, device, stage_of(stage), settings.initial_gate)
    plan = replace(settings.round_plan(stage, 0), clip_norm=0.0)  # the plain loop clips nobody
    mixing = _mixing(settings, dataset) if model.mixture is not None else None
    return Work(model, dataset, settings, plan, mixing, kept)


def _mixing(settings: Settings, dataset: Dataset) -> Mixing:
    plan = settings.mixing("", settings.memory_novelty)
    content = open_content(dataset, settings.modalities, torch_device(settings.device))
    return plan, recall_of(dataset, content)


def engine_round(work: Work, number: int, rows: Rows | None = None) -> int:
    """This app's engine; returns how many users it trained."""
    given = work.rows() if rows is None else rows
    plan, size = work.round(number), work.settings.users_per_batch
    mixing = work.mixing_in(number)
    return train_round(work.model, work.dataset, given, plan, size, mixing).participants


def plain_round(work: Work, number: int) -> int:
    """An ordinary PyTorch loop: each user trains a deep copy of the model with torch's SGD."""
    plan, dataset, groups = work.round(number), work.dataset, work.model.stage.trained
    freeze(work.model, work.model.stage)
    start = read_groups(work.model, groups)
    sums = {name: torch.zeros_like(value) for name, value in start.items()}
    trained = 0
    for row in np.flatnonzero(plan.takes_part(dataset.user_keys)):
        if dataset.lengths(np.array([row]))[0] < 4:  # no training target
            continue
        own, weight = trained_user(work, plan, int(row))
        with torch.no_grad():
            for name, value in read_groups(own, groups).items():
                sums[name] += weight * (value - start[name])
        trained += 1
    return trained


def trained_user(work: Work, plan: RoundPlan, row: int) -> tuple[Recommender, float]:
    """A copy of the model after a user's local steps, and the user's weight."""
    own = copy.deepcopy(work.model)
    learned = [p for p in own.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=plan.learning_rate)
    length = work.settings.max_length + 1
    trained, _ = split_view(work.dataset, row, "train")
    device = own.item_embedding.weight.device
    history = torch.from_numpy(trained[-length:].astype(np.int64)).to(device)
    loss = _mixed_loss(work, own, plan, row) if work.mixing else _next_item_loss(own, history, plan)
    with plain_products():  # what an ordinary nn.Linear takes
        for step in range(plan.local_steps):
            optimizer.zero_grad()
            loss(step).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return own, float(len(history) - 1)


class _TorchDropout:
    """torch's own dropout in place of the hashed one: what an ordinary loop has."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.rate)


def _next_item_loss(own: Recommender, history: Tensor, plan: RoundPlan) -> Callable[[int], Tensor]:
    """Stage 1 in a few lines: cross-entropy of each next item over the whole catalogue."""
    dropout = _TorchDropout(plan.dropout)

    def loss(step: int) -> Tensor:
        hidden = own(history[None, :-1], dropout)[0]  # [T, D]
        items = own.item_embedding.weight[1:]
        return functional.cross_entropy(hidden @ items.T, history[1:] - 1)

    return loss


def _mixed_loss(work: Work, own: Recommender, plan: RoundPlan, row: int) -> Callable[[int], Tensor]:
    """Stages 2 and 3: the same objective, one user at a time."""
    mixing = work.mixing_in(plan.round)
    assert mixing is not None  # noqa: S101 (for the type checker)
    objective = MixtureObjective(own, work.dataset, plan, *mixing)
    batch = objective.batch(np.array([row]))
    arrays: Arrays = dict(own.named_parameters())

    def loss(step: int) -> Tensor:
        keys = torch.from_numpy(plan.dropout_keys(batch.keys, step))
        return objective.per_user_losses(arrays, batch.tensors, keys).total.sum()

    return loss


class Workers:
    """The engine in processes of one thread each, as Ray's actors run it, without Flower."""

    def __init__(
        self, config: dict[str, Value], stage: int, processes: int, kept: bool = False
    ) -> None:
        context = get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for partition in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, config, stage, partition, processes, kept), daemon=True
            )
            process.start()
            theirs.close()  # so that a worker's death ends what is waited for
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            self._answer(pipe)

    def round(self, number: int) -> tuple[int, float]:
        """Users trained by all, and the seconds until the last was done."""
        started = time.perf_counter()
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # its answer is missed below
                pipe.send(number)
        trained = sum(self._answer(pipe) for pipe in self._pipes)
        return trained, time.perf_counter() - started

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()

    @staticmethod
    def _answer(pipe: Connection) -> int:
        try:
            return int(pipe.recv())
        except (EOFError, OSError) as error:
            raise WorkerError("a process that was measured died; it said why above") from error


def _serve(
    pipe: Connection, config: dict[str, Value], stage: int, partition: int, of: int, kept: bool
) -> None:
    torch.set_num_threads(1)
    work = open_work(config, stage, kept)
    rows = work.rows(partition, of)
    work.remember(rows)
    pipe.send(0)
    while True:
        try:
            number = pipe.recv()
        except EOFError:  # closed: the measurement is over, or who measured is gone
            return
        pipe.send(engine_round(work, number, rows))
