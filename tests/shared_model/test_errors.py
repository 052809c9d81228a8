"""An error is one line that a terminal shows as it is."""

import pytest

from shared_model.errors import DataError


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\n\tb", "a b"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp", "\\u202egnp"),
        ("Amélie 天 \\x1b", "Amélie 天 \\x1b"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(given: str, shown: str) -> None:
    error = DataError("bad id", got=given, todo="mend it")
    assert str(error) == f"bad id; got {shown}; do: mend it"
