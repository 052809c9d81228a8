"""Local training: every participating user starts from the same global arrays."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from client_app.data.dataset import Dataset, Ints, Rows
from client_app.memory.cache import Recall
from client_app.training.batch_size import BatchSize, batch_size
from client_app.training.batch_sums import Told, summed
from client_app.training.clipping import clipped_weights
from client_app.training.losses import Descent
from client_app.training.mixture_objective import MixtureObjective
from client_app.training.objective import (
    BackboneObjective,
    Batch,
    Losses,
    Objective,
    participants,
    stack_losses,
)
from client_app.training.round_candidates import (
    SampledObjective,
    met_items,
    round_items,
    some_rows,
)
from shared_model.device import on_device, single_threaded
from shared_model.errors import NodeError
from shared_model.model.matmul import plain_products
from shared_model.model.recommender import Arrays, Recommender, freeze, read_groups
from shared_model.protocol.plan import LocalUpdate, MixturePlan, RoundPlan
from shared_model.stages import TABLE

Mixing = tuple[MixturePlan, Recall]
MakeObjective = Callable[[Recommender], Objective]
_NOTHING = np.empty(0, np.int64)


def train_round(
    model: Recommender,
    dataset: Dataset,
    rows: Rows,
    plan: RoundPlan,
    users_per_batch: int,
    mixing: Mixing | None = None,
    met: Ints = _NOTHING,
) -> LocalUpdate:
    """Train the node's participating users (``rows`` [N] of the dataset) and sum their updates.

    ``model`` holds the round's global arrays, and holds them again on return. One local step needs
    one backward pass a batch, since the sum of the users' gradients is the gradient of the sum.
    With more steps, or clipping, a user moves a copy of its own: on a GPU the copies of a batch are
    stacked, on a processor they take turns. Stages 2 and 3 need ``mixing``. ``users_per_batch`` 0
    is as many as fit.

    On a processor with several of torch's threads, each trains batches of its own: small products
    gain little from a second thread, other users gain all of it.

    Where the plan draws candidates, participants of all nodes ``met`` these items [M], rising, and
    the update has some rows of the item table alone.
    """
    having = participants(dataset, rows, plan)
    if plan.candidates:
        return _train_sampled(model, dataset, having, plan, users_per_batch, met)

    def objective(of: Recommender) -> Objective:
        if mixing is None:
            return BackboneObjective(of, dataset, plan)
        return MixtureObjective(of, dataset, plan, *mixing)

    return _train(model, objective, having, plan, users_per_batch)


def _train_sampled(
    model: Recommender,
    dataset: Dataset,
    having: Rows,
    plan: RoundPlan,
    users_per_batch: int,
    met: Ints,
) -> LocalUpdate:
    """The same among the round's items; rows of none of them if nobody takes part."""
    if not np.isin(met_items(dataset, having, model.shape.max_length), met).all():
        raise NodeError("participants met items that are not the round's")
    competing = round_items(dataset, plan, met)
    table = model.item_embedding.weight.detach()
    rows = torch.from_numpy(competing.items).to(table.device)
    with some_rows(model, table[rows]):
        update = _train(
            model,
            lambda of: SampledObjective(of, dataset, plan, competing),
            having,
            plan,
            users_per_batch,
        )
    told = slice(1, None) if len(having) else slice(0)  # padding is nobody's
    arrays = update.arrays | {TABLE: update.arrays[TABLE][told]}
    return replace(update, arrays=arrays, rows=rows[told].int())


def _train(
    model: Recommender,
    make: MakeObjective,
    having: Rows,
    plan: RoundPlan,
    users_per_batch: int,
) -> LocalUpdate:
    """The summed update of the participants ``having``, by their objective."""
    freeze(model, model.stage)
    device = model.item_embedding.weight.device.type
    size = batch_size(users_per_batch, device, plan.stage)
    objective = make(model)
    chosen = size.split(having, objective.seen(having))
    workers = max(1, min(torch.get_num_threads(), len(chosen))) if device == "cpu" else 1
    if workers == 1:
        return _train_batches(model, objective, chosen, plan, size)

    def share(worker: int) -> LocalUpdate:
        own = copy.deepcopy(model)
        return _train_batches(own, make(own), chosen[worker::workers], plan, size)

    with single_threaded(), ThreadPoolExecutor(workers) as pool:
        first, *others = pool.map(share, range(workers))
    for other in others:
        first += other
    return first


def _train_batches(
    model: Recommender,
    objective: Objective,
    chosen: Sequence[Rows],
    plan: RoundPlan,
    size: BatchSize,
) -> LocalUpdate:
    """The summed update of some batches of users; one that does not fit is trained in halves."""
    on_cpu = model.item_embedding.weight.device.type == "cpu"
    train_batch = _one_step if plan.sums_users else _in_turn if on_cpu else side_by_side
    sums = _zeros(read_groups(model, model.stage.trained))
    told: list[Told] = []
    objective.foresee(np.concatenate([_NOTHING, *chosen]))
    if plan.sums_users:
        objective.share(len(chosen))
    waiting = list(reversed(chosen))
    following: Batch | None = None
    while waiting:
        rows = waiting.pop()
        before = {name: value.clone() for name, value in sums.items()} if told else {}
        try:
            batch = following or objective.batch(rows)
            following = _ahead(objective, waiting)
            told.append(Told.of(batch, train_batch(model, objective, batch, plan, sums)))
            continue
        except torch.OutOfMemoryError as error:
            reason, following = str(error), None
        for name, value in sums.items():  # without what was added before memory ran out
            value.zero_()
            if before:
                value.copy_(before[name])
        waiting += reversed(size.halved(rows, reason))
        torch.cuda.empty_cache()
    objective.settle([Descent(sums, plan.learning_rate)])
    return summed(sums, told)


def _ahead(objective: Objective, waiting: Sequence[Rows]) -> Batch | None:
    """The next batch, before this one trains: to ask a GPU for sizes is to wait for all that it has
    to do. ``None`` where there is none, or no room for both: then it has to come in its turn."""
    try:
        return objective.batch(waiting[-1]) if waiting else None
    except torch.OutOfMemoryError:
        return None


def _zeros(like: Arrays) -> Arrays:
    """As many zeros, in one call: a GPU waits for each."""
    sums = {name: torch.empty_like(array) for name, array in like.items()}
    torch._foreach_zero_(list(sums.values()))
    return sums


def _dropout_keys(batch: Batch, plan: RoundPlan, step: int) -> Tensor:
    """The batch's dropout names in a local step. [B] int64."""
    return on_device(plan.dropout_keys(batch.keys, step), batch.weights.device)


def _one_step(
    model: Recommender, objective: Objective, batch: Batch, plan: RoundPlan, sums: Arrays
) -> Losses:
    """Add the batch's weighted updates to ``sums``; returns its losses."""
    keys = _dropout_keys(batch, plan, 0)
    return objective.step(batch, keys, [Descent(sums, plan.learning_rate)])


def _in_turn(
    model: Recommender, objective: Objective, batch: Batch, plan: RoundPlan, sums: Arrays
) -> Losses:
    """The same for several local SGD steps, or clipping: one user after another moves the model
    and puts it back. On a processor, whose caches hold one model's copy but not a batch of them.

    Returns the losses before the first step.
    """
    own = {name: p.detach() for name, p in model.named_parameters() if name in sums}
    start = {name: array.clone() for name, array in own.items()}
    first = []
    for user, weight in enumerate(batch.weights.tolist()):
        one = objective.single_user(batch, user)
        if plan.clip_norm:
            update = {name: torch.zeros_like(array) for name, array in own.items()}
            first.append(_steps(objective, one, plan, own, Descent(update, plan.learning_rate)))
            moved = {name: value[None] for name, value in update.items()}
            _add_clipped(sums, moved, batch.weights[[user]], plan.clip_norm)
        else:
            total = Descent(sums, plan.learning_rate * weight)
            first.append(_steps(objective, one, plan, own, total))
        for name, array in own.items():
            array.copy_(start[name])
    return stack_losses(first)


def _steps(
    objective: Objective, batch: Batch, plan: RoundPlan, own: Arrays, total: Descent
) -> Losses:
    """All local steps of a batch move the parameters ``own``, and ``total`` by the whole way: a
    difference of parameters would round what is small away. Returns the losses before the first.
    """
    losses = []
    for step in range(plan.local_steps):
        last = step + 1 == plan.local_steps
        descents = [total] if last else [total, Descent(own, plan.learning_rate)]
        losses.append(objective.step(batch, _dropout_keys(batch, plan, step), descents))
    return losses[0]


def side_by_side(
    model: Recommender, objective: Objective, batch: Batch, plan: RoundPlan, sums: Arrays
) -> Losses:
    """The same with stacked copies of the parameters, one for each user.

    Returns the losses before the first step.
    """
    moved, losses = _own_updates(model, objective, batch, plan, list(sums))
    _add_clipped(sums, moved, batch.weights, plan.clip_norm)
    return losses


def _add_clipped(sums: Arrays, moved: Arrays, weights: Tensor, clip_norm: float) -> None:
    """Add the users' weighted updates ``moved`` [B, ...], each of them clipped before; 0 = not."""
    if clip_norm:
        weights = clipped_weights(moved, weights, clip_norm)
    for name, total in sums.items():
        total += torch.tensordot(weights, moved[name], dims=1)


def _own_updates(
    model: Recommender, objective: Objective, batch: Batch, plan: RoundPlan, trained: list[str]
) -> tuple[Arrays, Losses]:
    """Each user's update [B, ...] of the ``trained`` arrays: SGD on a copy of its own.

    With them the losses before the first step.
    """
    start = {name: p.detach() for name, p in model.named_parameters()}
    copies = {name: start[name].expand(len(batch.keys), *start[name].shape) for name in trained}

    def user_loss(
        own: Arrays, tensors: Arrays, key: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Arrays]]:
        losses = objective.per_user_losses({**start, **own}, tensors, key)
        return losses.total.sum(), (losses.nats, losses.logs)

    losses = []
    for step in range(plan.local_steps):
        keys = _dropout_keys(batch, plan, step)
        with sdpa_kernel(SDPBackend.MATH), plain_products():  # the others have no batching rule
            gradients, (total, (nats, logs)) = vmap(grad_and_value(user_loss, has_aux=True))(
                copies, batch.one_by_one(), keys[:, None]
            )
        losses.append(Losses(total, nats, logs))
        if plan.local_steps == 1:  # a difference of copies would round what is small away
            return {n: gradients[n].mul_(-plan.learning_rate) for n in trained}, losses[0]
        copies = {n: copies[n].sub(gradients[n], alpha=plan.learning_rate) for n in trained}
    return {name: copies[name] - start[name] for name in trained}, losses[0]
