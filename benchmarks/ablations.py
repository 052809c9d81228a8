"""The rows of the ablation table, as data: what each trains, and how it differs from the others.

A row that does not begin with Stage 1 goes on from the Stage 1 that all such rows share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client_app.data.compile import write_dataset
from client_app.data.content import unit_rows
from client_app.data.dataset import Dataset
from feddmmr.data.reading import readers
from feddmmr.data.reading.source import Layout
from feddmmr.features.analysis import squeeze
from shared_model.fingerprint import file_sha256
from shared_model.protocol.config import Value

Changes = Mapping[str, Value]  # run-config keys

BACKBONE = "stage 1"
SQUEEZED = 128  # dimensions
STANDSTILL = 1e-12  # a server learning rate that no score feels; 0 would be "the default"


@dataclass(frozen=True)
class Row:
    """One row: the run-config of each stage that it trains itself, in order."""

    name: str
    stages: Mapping[int, Changes]
    squeezed: bool = False  # on the dataset with small features

    @property
    def shares_backbone(self) -> bool:
        """Whether the row goes on from the shared Stage 1."""
        return 1 not in self.stages


def table_rows(one: int, two: int, three: int) -> list[Row]:
    """All rows, for these numbers of rounds in Stages 1, 2 and 3."""

    def both(**changes: Value) -> dict[int, Changes]:
        keys = {key.replace("_", "-"): value for key, value in changes.items()}
        return {2: {"num-rounds": two} | keys, 3: {"num-rounds": three} | keys}

    backbone: dict[int, Changes] = {1: {"num-rounds": one}}
    return [
        Row(BACKBONE, backbone),
        Row("stages 2 and 3", both()),
        Row("control", {1: {"num-rounds": one + two + three}}),
        Row("no alignment", _unaligned(two + three)),
        Row("text only", both(modalities="text")),
        Row("visual only", both(modalities="visual")),
        Row(f"squeezed {SQUEEZED}", backbone | both(), squeezed=True),
        Row("gate 0.0001", both(initial_gate=1e-4)),
        Row("gate 0.01", both(initial_gate=1e-2)),
    ]


def _unaligned(rounds: int) -> dict[int, Changes]:
    """Stage 3 with the experts as they were initialised; it gets the rounds of Stage 2 as well.

    The app has no such path, since Stage 3 needs a complete Stage 2: here that is one round which
    moves nothing.
    """
    return {
        2: {"num-rounds": 1, "server-learning-rate": STANDSTILL},
        3: {"num-rounds": rounds, "alignment-weight": 0.0},
    }


NAMES = [row.name for row in table_rows(1, 1, 1)]


def squeezed_dataset(dataset: Dataset, work: Path) -> Path:
    """The same histories and catalogue with features of at most SQUEEZED dimensions: its folder.

    Written once; its name has the hash of dataset.json, which lists the hash of every file.
    """
    source = file_sha256(dataset.folder / "dataset.json")[:12]
    folder = work / f"dataset-squeezed-{SQUEEZED}-{source}"
    if not folder.is_dir():
        read = readers.read_source(dataset.folder, "folder", Layout())
        features = {
            kind: squeeze(unit_rows(array), SQUEEZED).astype(np.float16)
            for kind, array in read.features.items()
        }
        items = readers.read_items(dataset.folder / "items.csv")
        name = dataset.info["name"]
        write_dataset(folder, read.interactions, items, features, name, read.encoders)
    return folder
