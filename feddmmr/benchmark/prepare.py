"""From a source folder to a dataset with features, once: imported, and encoded if need be.

What is finished lies below the benchmark's own folder and is not made again. Encoders are imported
only where a dataset with texts has no features.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client_app.data.dataset import Dataset, open_dataset
from feddmmr.benchmark.registry import Benchmark
from feddmmr.notes import note
from server_app.record.checkpoint import write_atomically
from shared_model.errors import ConfigError, DataError

TEXT_MODEL = "all-MiniLM-L6-v2"
_TODO = "free disk space or choose another --work"


@dataclass(frozen=True)
class Prepared:
    """A dataset to train on, and why it has no features, if it has none."""

    dataset: Dataset
    no_features: str = ""


def prepare(bench: Benchmark, folder: Path, text_model: str = "") -> Prepared:
    """The benchmark's dataset: the source itself if it is one, or what is made of it in ``folder``.

    ``ConfigError`` if another source, or other options, were imported into ``folder`` before.
    """
    if not bench.source.exists():
        raise DataError(
            "the source of this benchmark is not there",
            where=str(bench.source),
            todo="pass the folder that has it with --data",
        )
    _remember(bench, folder, text_model)
    if (folder / "dataset").is_dir():
        return Prepared(open_dataset(folder / "dataset"))
    dataset = _imported(bench, folder / "imported")
    lacking = _lacking(bench, dataset)
    if not lacking:
        return Prepared(dataset)
    features = folder / "features.safetensors"
    if why := _encode(bench, dataset, lacking, features, text_model):
        has_some = bool(dataset.features_sha256)
        rest = "without some of its features" if has_some else "has no features, so Stage 1 alone"
        note(f"note: {bench.name} {rest}: {why}")
        return Prepared(dataset, "" if has_some else why)
    _add_features(dataset, features, folder / "dataset")
    return Prepared(open_dataset(folder / "dataset"))


def _imported(bench: Benchmark, output: Path) -> Dataset:
    """The source, imported unless it is a dataset and nothing is to be chosen from it."""
    choice = bench.options.keys() - {"name", "duplicates", "sort", "items"}
    if (bench.source / "dataset.json").is_file() and not choice:
        return open_dataset(bench.source)
    if not output.is_dir():
        from feddmmr.data.importers import import_dataset

        note(f"{bench.name}: importing {bench.source}")
        import_dataset(bench.source, output, bench.import_options)
    return open_dataset(output)


def _lacking(bench: Benchmark, dataset: Dataset) -> list[str]:
    """The features that the dataset lacks and could have."""
    with (dataset.folder / "items.csv").open(encoding="utf-8", newline="") as file:
        columns = set(next(csv.reader(file), []))
    wanted = bench.features.get("text-column")
    texts = {wanted} if wanted else {"text", "title"}
    found = {"text": bool(texts & columns), "visual": "images" in bench.features}
    return [kind for kind, there in found.items() if there and not dataset.info[f"{kind}_dim"]]


def _encode(
    bench: Benchmark, dataset: Dataset, kinds: list[str], output: Path, text_model: str
) -> str:
    """Encode the catalogue; why it cannot be done, or an empty string."""
    if output.is_file():
        return ""
    from feddmmr.features.encode import EncodeOptions, encode_features

    options = EncodeOptions(
        items=dataset.folder / "items.csv",
        output=output,
        images=bench.source / bench.features["images"] if "visual" in kinds else None,
        texts="text" in kinds,
        text_column=bench.features.get("text-column", "") if "text" in kinds else "",
        text_model=text_model or bench.features.get("text-model", TEXT_MODEL),
    )
    try:
        encode_features(options, note, _track)
    except DataError as error:
        return str(error)
    return ""


def _track(chunks: Sequence[Any], what: str) -> Iterable[Any]:
    """A line at the start and at each tenth."""
    tenth = max(1, len(chunks) // 10)
    for number, chunk in enumerate(chunks):
        if number % tenth == 0:
            note(f"encoding {what}: {number} of {len(chunks)} chunks")
        yield chunk


def _add_features(dataset: Dataset, features: Path, output: Path) -> None:
    """The same histories and catalogue with more features, in the new folder ``output``."""
    from client_app.data.compile import write_dataset
    from feddmmr.data.reading import readers
    from feddmmr.data.reading.source import Layout
    from feddmmr.features.files import read_features

    read, found = readers.read_source(dataset.folder, "folder", Layout()), read_features(features)
    write_dataset(
        output,
        read.interactions,
        readers.read_items(dataset.folder / "items.csv"),
        {**read.features, **found.arrays},
        dataset.info["name"],
        {**read.encoders, **found.encoders},
        imported=dataset.info.get("imported"),
    )


def _remember(bench: Benchmark, folder: Path, text_model: str) -> None:
    """Say what the folder is made of, and refuse one that was made of something else."""
    made_of = {
        "source": str(bench.source),
        "import": bench.options,
        "features": bench.features | ({"text-model": text_model} if text_model else {}),
    }
    path = folder / "source.json"
    if path.is_file():
        before = json.loads(path.read_bytes())
        if before != made_of:
            raise ConfigError(
                "this benchmark was begun with another source or other options",
                where=str(path),
                expected=json.dumps(before),
                got=json.dumps(made_of),
                todo="restore them, or choose another --work",
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(made_of, indent=1).encode(), _TODO)
