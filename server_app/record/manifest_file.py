"""The manifest's file: one line a field, a seal over every field, and a shape to read it by.

The seal has the sha256 of every top-level field, and of every field of every stage's record. What
was edited, cut or damaged is seen before anything of it is used, and named. It is a checksum, not a
signature: the shape is checked, too, since anyone can seal anew.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shared_model.errors import ManifestError
from shared_model.fingerprint import canonical, text_sha256
from shared_model.stages import STAGES

FORMAT = 2

Record = dict[str, Any]

_TODO = "restore the file from a copy, or choose another name with run='NAME'"
_NAMED = 10  # fields that an error names
_NUMBERS = {str(number) for number in STAGES}
_ANY = "any key"  # of a dict whose keys are free


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds


def _like(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


# What is read of a manifest later, and so has to be there. A shape is a test of a value, a list of
# one shape, or a dict of shapes, where more keys than the named ones may be.
_text, _record, _number = _is(str), _is(dict), _is(int, float)
_whole = _is(int)
_hash, _file = _like("([0-9a-f]{64})?"), _like(r"([A-Za-z0-9][\w.-]{0,199}\.safetensors)?")
_CELL = {"hr@10": _number, "ndcg@10": _number, "users": _number}
_REPORT = {_ANY: {"full": _CELL, _ANY: _CELL}}
_DROPPED = [{"node": _text, "reason": _text}]
_ROUND = {
    "round": _whole,
    "participants": _whole,
    "nodes": _whole,
    "loss": _is(int, float, type(None)),
    "seconds": _number,
    "bytes_down": _whole,
    "bytes_up": _whole,
    "dropped": _DROPPED,
}
_LAST = {"file": _file, "sha256": _hash, "round": _whole, "optimizer_steps": _whole}
_PRIVACY = {
    "noise_multiplier": _number,
    "sampling_rate": _number,
    "clip_norm": _number,
    "delta": _number,
    "users": _whole,
    "attempt": _whole,
    "rounds": _whole,
    "epsilon": _number,
    "secret_sha256": _hash,
    "budget": _number,
    "nodes": {_ANY: _hash},
    "made_by": {_ANY: _text},
    "releases": [{"round": _whole, "absent": [_text], "noise": _hash}],
}
_STAGE = {
    "status": _like("running|complete|failed|stale"),
    "app_sha256": _hash,
    "parent_sha256": _hash,
    "checkpoint": _file,
    "sha256": _hash,
    "last": lambda value: value == {} or not any(_misshapen(value, _LAST, "last")),
    "loaded": [_text],
    "trained": [_text],
    "frozen": [_text],
    "config": _record,
    "seed": _whole,
    "best_round": _whole,
    "rounds": [_ROUND],
    "valid": _REPORT,
    "test": _REPORT,
    "test_dropped": _DROPPED,
    "privacy": lambda value: value == {} or not any(_misshapen(value, _PRIVACY, "privacy")),
}
_MANIFEST = {
    "format": lambda value: value == FORMAT,
    "run": _text,
    "app": {"sha256": _hash},
    "dataset": {"sha256": _hash, "catalogue_sha256": _hash},
    "features": {"sha256": _hash},
    "stages": {_ANY: _STAGE},
    "superseded": [
        {
            "checkpoint": _file,
            "last": _record,
            "stage": _whole,
            "rounds": [{"round": _whole}],
            "privacy": _STAGE["privacy"],
        }
    ],
    "seal": {_ANY: _hash},
}


def sealed(data: Record) -> bytes:
    """The file's content; ``data["seal"]`` is made anew. ``ValueError`` for a NaN."""
    texts = {path: canonical(value) for path, value in _fields(data)}
    data["seal"] = {path: text_sha256(text) for path, text in texts.items()}
    stages = {
        number: _block({name: texts[f"stages/{number}/{name}"] for name in record})
        for number, record in data["stages"].items()
    }
    top = {name: texts[name] for name in data if name in texts}
    seal = _block({path: canonical(sha256) for path, sha256 in data["seal"].items()})
    return (_block(top | {"stages": _block(stages), "seal": seal}) + "\n").encode()


def unsealed(content: bytes, path: Path) -> Record:
    """The document of a manifest's file; ``ManifestError`` names the fields that are not as saved.

    ``path`` is where the content was found, for the message.
    """
    try:
        data = json.loads(content, parse_float=_as_saved, parse_constant=_as_saved)
        _require_version(data, path)
        faults = {
            "was changed after it was saved": _changed(data),
            "has no such shape": sorted(_misshapen(data, _MANIFEST, ""))
            or sorted(f"stages/{key}" for key in data["stages"] if key not in _NUMBERS),
        }
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            "unreadable manifest", where=str(path), got=str(error), todo=_TODO
        ) from error
    for what, fields in faults.items():
        if fields:
            got = _names(fields)
            raise ManifestError(f"the manifest {what}", where=str(path), got=got, todo=_TODO)
    return dict(data)


def _require_version(data: Any, path: Path) -> None:
    known = isinstance(data, dict) and "seal" in data and type(data.get("format")) is int
    if not known or data["format"] != FORMAT:
        names = _names(sorted(data)) if isinstance(data, dict) else type(data).__name__
        raise ManifestError(
            "not a manifest of this version",
            where=str(path),
            expected=f"format {FORMAT} with {', '.join(sorted(_MANIFEST))}",
            got=f"format {data['format']}" if known else names,
            todo=_TODO,
        )


def _fields(data: Record) -> Iterator[tuple[str, Any]]:
    """Path and value of each field that the seal covers; a misshapen part counts as one field."""
    for name, value in data.items():
        if name == "stages" and isinstance(value, dict):
            for number, record in value.items():
                if isinstance(record, dict):
                    yield from ((f"stages/{number}/{key}", inner) for key, inner in record.items())
                else:
                    yield f"stages/{number}", record
        elif name != "seal":
            yield name, value


def _changed(data: Record) -> list[str]:
    """Paths of the fields that are not what the seal says, that it lacks, or that are gone."""
    own = {path: text_sha256(canonical(value)) for path, value in _fields(data)}
    seal = data["seal"] if isinstance(data["seal"], dict) else {}
    return sorted(path for path in own.keys() | seal.keys() if own.get(path) != seal.get(path))


def _misshapen(value: Any, shape: Any, path: str) -> Iterator[str]:
    """Paths of what is absent or does not have its shape."""
    if isinstance(shape, list) and isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _misshapen(inner, shape[0], f"{path}/{place}")
    elif isinstance(shape, dict) and isinstance(value, dict):
        yield from (f"{path}/{name}"[1:] for name in shape.keys() - {_ANY} - value.keys())
        free = shape.get(_ANY, _is_anything)
        for name, inner in value.items():
            yield from _misshapen(inner, shape.get(name, free), f"{path}/{name}")
    elif not callable(shape) or not shape(value):
        yield path[1:]


def _is_anything(_: Any) -> bool:
    return True


def _names(fields: list[str]) -> str:
    """The first fields, in ASCII: a name may hold what a log cannot print."""
    more = f" and {len(fields) - _NAMED} more" if len(fields) > _NAMED else ""
    named = ", ".join(fields[:_NAMED])
    return named.encode("ascii", "backslashreplace").decode() + more


def _block(texts: dict[str, str]) -> str:
    """A JSON object with one line a member, in the order of their names."""
    lines = (f"{json.dumps(name)}: {texts[name]}" for name in sorted(texts))
    return "{\n" + ",\n".join(lines) + "\n}"


def _as_saved(text: str) -> float:
    """A float, from the only text that is ever saved for it: no other digit will do."""
    value = float(text)
    if repr(value) != text or not math.isfinite(value):
        raise ValueError(f"a number that was never saved: {text:.40}")
    return value
