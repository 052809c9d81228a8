"""What a run on this machine is refused for before anything starts: in a second, without Ray.

The questions are those that the app itself asks once it runs (`server_app/admission.py`, and how a
node opens its data), asked of the same files. Data and runs of another machine's SuperLink are not
here to be looked at: there the app alone refuses.
"""

import sys
from pathlib import Path

from client_app.data.dataset import open_dataset, partition_rows
from server_app.admission import asked_stages, first_work, require_features
from server_app.record.lock import require_free
from server_app.record.manifest import read_manifest
from shared_model.errors import ManifestError
from shared_model.protocol.config import Settings


def runs_with_work(runs: list[Settings], num_supernodes: int) -> list[int]:
    """The places of the runs to start, of those that one command asks for, in order.

    What is complete before the first with something to do is left out, and said on stderr. An error
    of our tree for a run that could not begin, or if all of them are complete.
    """
    for place, settings in enumerate(runs):
        if is_to_start(settings, num_supernodes):
            return list(range(place, len(runs)))
        if len(runs) > 1:
            print(f"note: {_complete(settings)}: left alone", file=sys.stderr)
    last = runs[-1]
    raise ManifestError(
        f"{_complete(last)}: nothing to do",
        where=str(read_manifest(last.home_folder, last.run).path),
        todo=f"see it with `feddmmr runs show {last.run}`, train it again with --set redo=true, "
        "or choose another name with --run",
    )


def is_to_start(settings: Settings, num_supernodes: int) -> bool:
    """Whether a run has something to do; an error of our tree if it could not begin."""
    manifest = read_manifest(settings.home_folder, settings.run)
    if first_work(settings, manifest) is None:
        return False
    if settings.dataset:  # the demo is generated, and sound
        _refuse_data(settings, num_supernodes)
    require_free(manifest.folder)
    return True


def _refuse_data(settings: Settings, num_supernodes: int) -> None:
    dataset = open_dataset(Path(settings.dataset))
    partition_rows(dataset, 0, num_supernodes)
    dims = dataset.info.get("visual_dim") or 0, dataset.info.get("text_dim") or 0
    require_features(asked_stages(settings), dataset.info, dims, settings.modalities)


def _complete(settings: Settings) -> str:
    stages = asked_stages(settings)
    if len(stages) > 1:
        return "all stages are complete"
    return f"stage {stages[0].number} ({stages[0].title}) is complete"
