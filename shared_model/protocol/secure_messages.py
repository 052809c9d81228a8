"""The wire of secure aggregation: keys, masked vectors and shares as Flower records.

Actions: ``query.keys`` has a node draw its key of a session, ``query.reveal`` asks for the shares
that open a sum, ``query.forget`` ends a session. A masked vector is the reply to ``train``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict

from shared_model.errors import NodeError
from shared_model.protocol.messages import from_record, to_record
from shared_model.secure.identity import SignedKey
from shared_model.secure.site import Masked
from shared_model.secure.use import Use

KEYS, REVEAL, FORGET = "query.keys", "query.reveal", "query.forget"


@dataclass(frozen=True)
class SecureRequest:
    """What a round plan says besides, where its sum is secure."""

    use: Use
    keys: list[SignedKey]  # of the use's sites, in their order
    scale: float  # by which numbers are multiplied (masked_update.py)


def session_request(session: str) -> RecordDict:
    """Ask a node for its key of a session, or to forget it."""
    return RecordDict({"ask": ConfigRecord({"session": session})})


def read_session(content: RecordDict) -> str:
    """The session that a request is about."""
    return _text(_fields(content, "ask"), "session")


def key_content(key: SignedKey) -> RecordDict:
    """A node's key as a reply."""
    return RecordDict({"key": ConfigRecord(asdict(key))})


def read_key(content: RecordDict) -> SignedKey:
    """The key of a reply."""
    given = _fields(content, "key")
    parts = [_bytes(given, name) for name in ("public", "identity", "signature")]
    return SignedKey(_text(given, "site"), *parts)


def with_secure(content: RecordDict, request: SecureRequest) -> RecordDict:
    """A round's request, with what masks are made of."""
    return RecordDict({**content, "secure": ConfigRecord(_request_fields(request))})


def read_secure(content: RecordDict) -> SecureRequest | None:
    """What masks are made of; ``None`` if a request asks for a bare update."""
    if "secure" not in content.config_records:
        return None
    return _request(_fields(content, "secure"))


def masked_content(masked: Masked) -> RecordDict:
    """A masked vector with its envelopes as a reply."""
    words = {"words": torch.from_numpy(masked.words.view(np.int32))}
    return RecordDict({"masked": to_record(words), "envelopes": _by_site(masked.envelopes)})


def read_masked(content: RecordDict) -> Masked:
    """The masked vector of a reply."""
    record = content.array_records.get("masked")
    arrays = {} if record is None else from_record(record)
    if set(arrays) != {"words"} or arrays["words"].dtype != torch.int32:
        raise NodeError("reply without a masked vector", expected="an ArrayRecord named 'masked'")
    return Masked(arrays["words"].numpy().view(np.uint32), _read_by_site(content, "envelopes"))


def reveal_request(
    request: SecureRequest, lost: Sequence[str], envelopes: Mapping[str, bytes]
) -> RecordDict:
    """Ask a node for its shares of a use without the lost sites."""
    return RecordDict(
        {
            "secure": ConfigRecord(_request_fields(request)),
            "lost": ConfigRecord({"sites": list(lost)}),
            "envelopes": _by_site(envelopes),
        }
    )


def read_reveal(content: RecordDict) -> tuple[SecureRequest, list[str], dict[str, bytes]]:
    """A use, its lost sites, and what the others have sealed for the node that is asked."""
    lost = _texts(_fields(content, "lost"), "sites")
    return _request(_fields(content, "secure")), lost, _read_by_site(content, "envelopes")


def shares_content(shares: Mapping[str, bytes]) -> RecordDict:
    """A node's shares as a reply."""
    return RecordDict({"shares": _by_site(shares)})


def read_shares(content: RecordDict) -> dict[str, bytes]:
    """The shares of a reply, by the site that dealt them."""
    return _read_by_site(content, "shares")


def _request_fields(request: SecureRequest) -> dict[str, Any]:
    return {
        **asdict(request.use),
        "sites": list(request.use.sites),
        "public": [key.public for key in request.keys],
        "identity": [key.identity for key in request.keys],
        "signature": [key.signature for key in request.keys],
        "scale": request.scale,
    }


def _request(given: Mapping[str, Any]) -> SecureRequest:
    sites = _texts(given, "sites")
    lists = [_lists(given, name, bytes) for name in ("public", "identity", "signature")]
    numbers = {name: given.get(name) for name in ("number", "round", "threshold")}
    flags = given.get("self_masked"), given.get("scale")
    if (
        any(type(value) is not int for value in numbers.values())
        or (type(flags[0]), type(flags[1])) != (bool, float)
        or {len(values) for values in lists} != {len(sites)}
    ):
        raise NodeError("unreadable request for a masked vector", got=ascii(sorted(given))[:200])
    keys = [SignedKey(*parts) for parts in zip(sites, *lists, strict=True)]
    use = Use(
        session=_text(given, "session"),
        sites=tuple(sites),
        self_masked=bool(flags[0]),
        **{name: int(str(value)) for name, value in numbers.items()},
    )
    return SecureRequest(use, keys, float(str(flags[1])))


def _by_site(given: Mapping[str, bytes]) -> ConfigRecord:
    sites = sorted(given)
    return ConfigRecord({"sites": sites, "sealed": [given[site] for site in sites]})


def _read_by_site(content: RecordDict, name: str) -> dict[str, bytes]:
    given = _fields(content, name)
    sites, sealed = _texts(given, "sites"), _lists(given, "sealed", bytes)
    if len(sites) != len(sealed):
        raise NodeError(f"unreadable {name}", got=f"{len(sites)} sites, {len(sealed)} values")
    return dict(zip(sites, sealed, strict=True))


def _fields(content: RecordDict, name: str) -> Mapping[str, Any]:
    if name not in content.config_records:
        raise NodeError("message without its config", expected=f"a ConfigRecord named '{name}'")
    return dict(content.config_records[name])


def _text(given: Mapping[str, Any], name: str) -> str:
    if not isinstance(given.get(name), str):
        raise NodeError("unreadable message", expected=f"a text '{name}'")
    return str(given[name])


def _bytes(given: Mapping[str, Any], name: str) -> bytes:
    if not isinstance(given.get(name), bytes):
        raise NodeError("unreadable message", expected=f"bytes '{name}'")
    return bytes(given[name])


def _texts(given: Mapping[str, Any], name: str) -> list[str]:
    return [str(value) for value in _lists(given, name, str)]


def _lists(given: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = given.get(name)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise NodeError("unreadable message", expected=f"a list '{name}' of {kind.__name__}")
    return values
