"""What malicious users of the promotion attack do: made-up histories, or made-up updates.

Letters: M malicious users, S made-up states, T positions, D hidden size.
"""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from client_app.data.dataset import Dataset, Ints, Rows
from client_app.data.folder import DTYPES, sealed_info
from feddmmr.audit.run import STAGE
from feddmmr.launch.in_process import InProcessGrid
from server_app.aggregation.chernoff import participation_nats
from server_app.record.checkpoint import write_atomically
from shared_model.model.dropout import Dropout
from shared_model.model.recommender import Arrays, Recommender, load_groups
from shared_model.protocol import messages
from shared_model.protocol.config import Settings, Value
from shared_model.protocol.plan import LocalUpdate
from shared_model.seeds import rng, user_key

HONEST, MALICIOUS = "honest", "malicious"
_TABLE, _BIAS = "item_embedding.weight", "backbone.final_norm.bias"
_HELD_OUT = 2  # a node keeps the last two interactions from training
_FREE = (
    10.0  # norm of a crafted update of weight 1 where nothing bounds it; honest ones have 2 to 4
)
_UNNOTICED = 30.0  # nats, of the 40 at which a node is dropped for too many participants
_STATES = 20  # made-up histories, from which the mean state is taken


def made_up_histories(pool: Rows, target: int, users: int, length: int, seed: int) -> list[Ints]:
    """Random items, the target after each of them: as often as a history of one user can have it.

    The random attack of Mobasher et al., "Toward Trustworthy Recommender Systems" (ACM TOIT 2007),
    for a model that learns what comes next. ``pool`` [P] item indices; -> M histories
    [``length`` + 2].
    """
    histories = []
    for user in range(users):
        drawn = rng(seed, "malicious", user).choice(pool, length // 2 + _HELD_OUT)
        pairs = np.stack([drawn, np.full(len(drawn), target)], 1)
        histories.append(pairs.ravel()[: length + _HELD_OUT])
    return histories


def write_site(parent: Path, like: Dataset, histories: list[Ints]) -> Path:
    """A dataset folder of malicious users with the catalogue of ``like``, named by its content.

    No importer checks it: who attacks writes what serves, such as an item more than once.
    """
    names = [f"{MALICIOUS}-{number}" for number in range(len(histories))]
    arrays: dict[str, npt.NDArray[Any]] = {
        "user_keys": np.array([user_key(name) for name in names], dtype=np.uint64),
        "indptr": np.cumsum([0, *map(len, histories)]),
        "items": np.concatenate(histories),
        "cold_target": np.zeros(len(histories)),
        "cold_length": np.zeros(len(histories)),
    }
    files = {}
    for name, array in arrays.items():
        stream = BytesIO()
        np.save(stream, array.astype(DTYPES[name]), allow_pickle=False)
        files[f"arrays/{name}.npy"] = stream.getvalue()
    for shared in ("items.csv", "features.safetensors"):
        if shared in like.info["files"]:
            files[shared] = (like.folder / shared).read_bytes()
    info = like.info | {"users": len(histories), "interactions": len(arrays["items"])}
    info["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files["dataset.json"] = sealed_info(info).encode()
    folder = parent / f"{MALICIOUS}-{hashlib.sha256(files['dataset.json']).hexdigest()[:12]}"
    (folder / "arrays").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return folder


def unnoticed(users: int, fraction: float) -> int:
    """How many of a node's users can take part in every round before the server drops the node.

    It drops one whose participants an honest draw hardly ever has (docs/faults.md, Chernoff).
    """
    people = range(1, users + 1)
    return sum(participation_nats(count, users, fraction) < _UNNOTICED for count in people)


@dataclass(frozen=True)
class Crafter:
    """Malicious users that answer every round with an update made to push one item.

    They move the target's row along the mean state after random histories (after Zhang et al.,
    "PipAttack", WSDM 2022), and the bias of every state along the target's row, since honest users
    would move it away. Each update has the norm ``dp-clip-norm``, all that is let through where
    sums are checked; without clipping _FREE.
    """

    settings: Settings
    model: Recommender  # scratch
    target: int
    users: int
    inputs: Tensor  # [S, T] random histories

    def answer(self, request: RecordDict) -> RecordDict:
        """The reply to a round: as many participants and targets as are not noticed."""
        settings, arrays = self.settings, messages.read_arrays(request)
        people = unnoticed(self.users, settings.fraction_train)
        targets = people * min(self.inputs.shape[1], settings.max_length)
        weight = float(people if settings.weighting == "uniform" else targets)
        update = {name: torch.zeros_like(array) for name, array in arrays.items()}
        half = weight * (settings.dp_clip_norm or _FREE) / 2**0.5  # the norm of each of two parts
        update[_TABLE][self.target] = half * self._direction(arrays)
        update[_BIAS] = half * _unit(arrays[_TABLE][self.target])
        told = 0 if settings.dp_noise_multiplier else targets  # under noise nodes tell no counts
        return messages.update_content(LocalUpdate(update, weight, 0.0, told, people))

    @torch.no_grad()
    def _direction(self, arrays: Arrays) -> Tensor:
        """The mean state of the histories under these arrays, of length one. [D]"""
        load_groups(self.model, arrays, STAGE.trained)
        mean = self.model(self.inputs, Dropout()).flatten(0, 1).mean(0)
        return _unit(mean).cpu()


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm()
    return unit


def random_inputs(pool: Rows, length: int, seed: int) -> Tensor:
    """Random histories without repeats. ``pool`` [P] -> int64 [S, T], T at most ``length``."""
    drawn = [rng(seed, "states", n).permutation(pool)[:length] for n in range(_STATES)]
    return torch.from_numpy(np.stack(drawn).astype(np.int64))


class CraftingGrid(InProcessGrid):
    """Honest nodes, and one named MALICIOUS whose answers to "train" are a crafter's."""

    def __init__(
        self, nodes: list[dict[str, Value]], config: dict[str, Value], crafter: Crafter
    ) -> None:
        super().__init__(nodes, config)
        self._crafter = crafter
        named = {context.node_config["name"]: node for node, context in self.contexts.items()}
        self._malicious = named[MALICIOUS]

    def _handle(self, message: Message) -> Message:
        ours = message.metadata.dst_node_id == self._malicious
        if ours and message.metadata.message_type == messages.TRAIN:
            return Message(self._crafter.answer(message.content), reply_to=message)
        return super()._handle(message)
