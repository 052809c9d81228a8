"""The manifest's file: one line a field, a seal over every field, and a shape to read it by.

The seal has the sha256 of every top-level field, and of every field of every stage's record. What
was edited, cut or damaged is seen before anything of it is used, and named. It is a checksum, not a
signature: the shape (schema.py) is checked, too, since anyone can seal anew.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from server_app.record.schema import FORMAT, ManifestDocument
from server_app.record.shape import misshapen, shape_of
from shared_model.errors import ManifestError
from shared_model.fingerprint import canonical, text_sha256
from shared_model.stages import STAGES

Record = dict[str, Any]  # JSON whose fields are not declared

_TODO = "restore the file from a copy, or choose another name with run='NAME'"
_NAMED = 10  # fields that an error names
_NUMBERS = {str(number) for number in STAGES}

_SHAPE = shape_of(ManifestDocument)


def sealed(data: ManifestDocument) -> bytes:
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


def unsealed(content: bytes, path: Path) -> ManifestDocument:
    """The document of a manifest's file; ``ManifestError`` names the fields that are not as saved.

    ``path`` is where the content was found, for the message.
    """
    try:
        data = json.loads(content, parse_float=_as_saved, parse_constant=_as_saved)
        _require_version(data, path)
        faults = {
            "was changed after it was saved": _changed(data),
            "has no such shape": sorted(misshapen(data, _SHAPE))
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
    return cast(ManifestDocument, data)


def _require_version(data: Any, path: Path) -> None:
    known = isinstance(data, dict) and "seal" in data and type(data.get("format")) is int
    if not known or data["format"] != FORMAT:
        names = _names(sorted(data)) if isinstance(data, dict) else type(data).__name__
        raise ManifestError(
            "not a manifest of this version",
            where=str(path),
            expected=f"format {FORMAT} with {', '.join(sorted(_SHAPE))}",
            got=f"format {data['format']}" if known else names,
            todo=_TODO,
        )


def _fields(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
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
