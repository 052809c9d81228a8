"""What the fuzz tests share: so many drawn cases, the same in every run, and what may come of one.

A case is either accepted, and then it is what the test's own definition of a sound one says, or it
is an error of our tree in one line. Any other exception fails; so does what should not be accepted.
All tests together draw 10,000 cases.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from shared_model.errors import FedDMMRError

FLOATS = st.floats() | st.sampled_from([0.0, 1.0, 2.5, 9.0, math.inf, -math.inf, math.nan, 1e300])
INTS = st.integers(-3, 60) | st.sampled_from([2**31, 2**63 - 1, -(2**63), 2**64, 10**400])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | INTS
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


def cases(number: int) -> Callable[[Any], Any]:
    """So many drawn cases, the same ones in every run."""
    return settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(use: Callable[[], Any]) -> Any:
    """What was accepted, or ``None`` for what was refused in one line."""
    try:
        return use()
    except FedDMMRError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 2000
    return None


def tally(seen: Counter[str], accepted: bool) -> None:
    seen["accepted" if accepted else "refused"] += 1


def assert_both(seen: Counter[str], least: int = 20) -> None:
    """The draws reach both sides; otherwise they would show little."""
    assert min(seen["accepted"], seen["refused"]) >= least, seen


def edit_json(draw: st.DrawFn, value: Any) -> None:
    """Change, add or delete a member somewhere below a JSON object or list."""
    while True:
        members = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not members:
            return
        member = draw(st.sampled_from(members))
        inner = value[member]
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            break
        value = inner
    change = draw(st.sampled_from(["value", "delete", "add"]))
    if change == "delete":
        del value[member]
    elif change == "add" and isinstance(value, dict):
        value[draw(st.text(max_size=4))] = draw(JSON)
    else:
        value[member] = draw(JSON)


def npy(header: str) -> bytes:
    """A .npy file of that header and 24 bytes."""
    text = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(24)


STRANGE = [
    b"",
    b"PK\x03\x04" + bytes(30),
    b"\x80\x04N.",
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
    npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }"),
    npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"),
    npy("{'descr': '((((', 'fortran_order': False, 'shape': (3,), }"),
    npy("{[]: 1}"),
    npy("'unfinished"),
    npy("(" * 90),
]
