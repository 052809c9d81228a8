"""The frozen groups that a node holds on its disk, by content hash.

A stage's frozen groups reach a node once (invariant 5): they lie below ``home``, since in a real
deployment a message can be a new process. What is missing, cut or changed there counts as lost, and
the node asks for it again. So the oldest can go: a node holds those that were used last.
"""

import os
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shared_model.errors import NodeError
from shared_model.files import replacing
from shared_model.fingerprint import arrays_sha256
from shared_model.model.recommender import Arrays

_MOST = 16  # files: a run has one for each of Stages 2 and 3, and several runs may share a home


def read_frozen(home: Path, sha256: str) -> Arrays | None:
    """The arrays with that content hash, or ``None`` if this node does not hold them."""
    path = _path(home, sha256)
    try:
        arrays = load_file(path)
        if arrays_sha256(arrays) != sha256:
            return None
        os.utime(path)  # used now
        return arrays
    except (OSError, SafetensorError, TypeError, ValueError):  # or a type that numpy lacks
        return None


def keep_frozen(home: Path, sha256: str, arrays: Arrays) -> None:
    """Write arrays that the server sent. ``NodeError`` if they are others, or cannot be written."""
    if arrays_sha256(arrays) != sha256:
        raise NodeError(
            "the frozen groups are not those of the plan",
            expected=f"sha256 {sha256[:12]}",
            got=arrays_sha256(arrays)[:12],
            todo="submit the same run again: it resumes",
        )
    path = _path(home, sha256)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A tensor that is a view with strides is refused. Not ``save``: that is two copies more.
        whole = {name: value.contiguous() for name, value in arrays.items()}
        with replacing(path, rivals=True) as temporary:
            save_file(whole, temporary)
        keep_newest(path, _MOST)
    except (OSError, SafetensorError) as error:
        raise NodeError(
            "cannot keep the frozen groups",
            where=str(path),
            got=str(error),
            todo="free disk space, or choose a writable 'home'",
        ) from error


def keep_newest(written: Path, most: int) -> None:
    """Keep the files that were used last, and always the one just written.

    What a killed process left behind goes so, too. Other processes may do the same at once.
    """
    used = {}
    for path in written.parent.iterdir():
        with suppress(FileNotFoundError):
            used[path] = path.stat().st_mtime_ns
    used.pop(written, None)
    for path in sorted(used, key=lambda one: (-used[one], one.name))[most - 1 :]:
        path.unlink(missing_ok=True)


def _path(home: Path, sha256: str) -> Path:
    return home / "frozen" / f"{sha256}.safetensors"
