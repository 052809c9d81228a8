"""The registry of benchmarks: one TOML file a dataset, in conf/benchmark/.

    title = "..."             folder = "beauty"       below --data; licences forbid to ship it
    seeds = [0, 1, 2]         config = "../ml-1m.toml"   run-config keys, as `feddmmr run --config`
    [import]                  options of `feddmmr data import`, with their names
    [features]                text-model, text-column, images (a folder in the source)
    [run]                     run-config keys, with tables stage-1 to stage-3
    [[bar]]                   what a row of the table has to reach (bars.py)

A folder that nobody has listed has defaults alone.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feddmmr.benchmark.bars import Bar
from feddmmr.data.import_options import ImportOptions
from feddmmr.launch.command import Overrides, merge, own_app
from shared_model.errors import ConfigError

SEEDS = [0, 1, 2]
_KEYS = {"title", "folder", "seeds", "config", "import", "features", "run", "bar", "speed"}
_FEATURES = {"text-model", "text-column", "images"}
_PATHS = {"items", "features"}  # import options that are files of the source
# Of a folder that nobody has looked at: what an import would otherwise ask about.
_UNKNOWN: dict[str, Any] = {"duplicates": "first", "sort": True}


@dataclass(frozen=True)
class Benchmark:
    """A dataset, how it is trained, and what has to come out."""

    name: str
    source: Path
    title: str = ""
    seeds: list[int] = field(default_factory=lambda: list(SEEDS))
    options: dict[str, Any] = field(default_factory=dict)  # of the import, as TOML names them
    features: dict[str, str] = field(default_factory=dict)
    run: Overrides = field(default_factory=dict)  # run-config keys, and tables by stage
    bars: list[Bar] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)  # of benchmarks/one_gpu.py

    @property
    def import_options(self) -> ImportOptions:
        """The import's options; paths are below the source."""
        given = {key.replace("-", "_"): value for key, value in self.options.items()}
        folder = self.source if self.source.is_dir() else self.source.parent
        given |= {key: folder / given[key] for key in _PATHS & given.keys()}
        given |= {"columns": tuple(given["columns"])} if "columns" in given else {}
        return ImportOptions(**{"name": self.name} | given)


def registry_folder() -> Path:
    """Where the registry is: in the checkout that this command belongs to."""
    return own_app() / "conf" / "benchmark"


def registered() -> list[str]:
    """The names in the registry."""
    return sorted(path.stem for path in registry_folder().glob("*.toml"))


def benchmark_of(name: str, data: Path | None) -> Benchmark:
    """A registered benchmark whose folder is below ``data``, or else the folder of that path."""
    if name in registered():
        return read_benchmark(registry_folder() / f"{name}.toml", data)
    folder = Path(name).expanduser().resolve()
    if not folder.exists():
        raise ConfigError(
            "neither a benchmark nor a folder",
            expected=f"one of {', '.join(registered())}, or a path",
            got=name,
        )
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.stem).strip("-._") or "dataset"
    source = _table_in(folder)
    options = {"name": folder.stem} | _UNKNOWN
    if source.is_file() and (source.parent / "items.csv").is_file():
        options["items"] = "items.csv"
    return Benchmark(plain, source, options=options)


def _table_in(folder: Path) -> Path:
    """A folder's only interactions.csv, .tsv or the like; or else the folder, or file, itself."""
    tables = sorted(folder.glob("interactions.*")) if folder.is_dir() else []
    return tables[0] if len(tables) == 1 and tables[0].suffix != ".parquet" else folder


def read_benchmark(path: Path, data: Path | None) -> Benchmark:
    """A file of the registry. ``ConfigError`` names what in it cannot be."""
    given = merge([path], [])
    _refuse_unknown(path, "keys", given.keys() - _KEYS)
    _refuse_unknown(path, "[features] keys", given.get("features", {}).keys() - _FEATURES)
    known = {option.name.replace("_", "-") for option in dataclasses.fields(ImportOptions)}
    _refuse_unknown(path, "[import] keys", given.get("import", {}).keys() - known)
    run: Overrides = {}
    if "config" in given:
        run = merge([path.parent / given["config"]], [])
        run = {key: value for key, value in run.items() if key not in ("run", "stage")}
    return Benchmark(
        name=path.stem,
        source=(data or Path()).expanduser().resolve() / given.get("folder", path.stem),
        title=given.get("title", path.stem),
        seeds=given.get("seeds", list(SEEDS)),
        options=given.get("import", {}),
        features=given.get("features", {}),
        run=run | given.get("run", {}),
        bars=[_bar(path, bar) for bar in given.get("bar", [])],
        speed=given.get("speed", {}),
    )


def _bar(path: Path, given: dict[str, Any]) -> Bar:
    try:
        return Bar(**given)
    except TypeError as error:
        raise ConfigError("not a [[bar]]", where=str(path), got=str(error)) from error


def _refuse_unknown(path: Path, what: str, names: set[str]) -> None:
    if names:
        raise ConfigError(f"unknown {what}", where=str(path), got=", ".join(sorted(names)))
