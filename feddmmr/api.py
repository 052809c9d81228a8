"""The Python API: train a run, open one, ask it.

    import feddmmr

    run = feddmmr.run(2, run="first", dataset="/data/mine", stage=1, num_rounds=100)
    run = feddmmr.open_run("first")
    run.data["stages"]["1"]["test"]["all"]["full-unseen"]["ndcg@10"]
    feddmmr.recommend(run, ["17", "42"], dataset="/data/mine", top=5)

Whatever is wrong is an error of ``shared_model.errors``, in one line. What is heavy is imported on
use.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_model.errors import ConfigError

if TYPE_CHECKING:
    from feddmmr.runs.read import Run
    from shared_model.protocol.config import Value


def run(num_supernodes: int = 1, /, **settings: "Value") -> "Run":
    """Train in this process: the same nodes, strategy and rounds, without Flower's daemons.

    ``settings`` are run-config keys (docs/configuration.md) with ``_`` for ``-``; what is not given
    has its default. A run that was cut off resumes. Raises ``ConfigError`` for an unknown key.
    """
    from feddmmr.launch.in_process import run_in_process

    if num_supernodes < 1:
        raise ConfigError("no SuperNode", expected="1 or more", got=str(num_supernodes))
    document = run_in_process(num_supernodes, **settings)
    home = settings.get("home")
    return open_run(document["run"], None if home is None else str(home))


def open_run(name: str, home: str | Path | None = None) -> "Run":
    """A run that was trained before; ``home`` is the run-config's, unless given.

    ``data`` is the manifest (docs/manifest.md), whose seal is checked. ``ManifestError`` if it is
    absent or was changed.
    """
    from feddmmr.runs.read import home_folder, read_run

    return read_run(home_folder(None if home is None else Path(home)), name)


def recommend(
    run: "Run",
    history: Sequence[int | str],
    *,
    dataset: str | Path | None = None,
    stage: int = 0,
    top: int = 10,
    seen: bool = False,
) -> list[dict[str, Any]]:
    """The best items after a history of item ids, oldest first, with scores and reasons.

    ``dataset`` is the folder that the run was trained on (a run of the demo finds its own),
    ``stage`` 0 the newest complete one. Items of the history come only if ``seen``. The same as
    ``feddmmr recommend --json`` says under "recommendations".
    """
    from feddmmr.recommendations.adviser import Adviser
    from feddmmr.recommendations.answer import answered, data_for
    from feddmmr.recommendations.titles import Catalogue

    data = data_for(run, run.folder.parent.parent, None if dataset is None else Path(dataset))
    catalogue = Catalogue(data)
    items = [catalogue.find(f"#{item}") for item in history]
    found: list[dict[str, Any]] = answered(
        Adviser(run, data, stage), catalogue, items, top, seen=seen
    )["recommendations"]
    return found
