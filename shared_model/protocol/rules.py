"""What a setting declares at its field: which values it takes, and how far it may change."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# "operational": where and how long, not what is trained: it may change when a run resumes, and no
# stage's record has it. The others stay then; from one stage to the next, too, where they say
# what a model means beyond its arrays' shapes, and what its evaluation is drawn from:
# "run": the same in all stages of a run. "mixture": the same in Stages 2 and 3. "stage": free.
Scope = Literal["operational", "run", "mixture", "stage"]


@dataclass(frozen=True)
class Rule:
    """Which values a setting takes; ``holds`` is asked about values of the field's type alone."""

    expected: str  # in the words of the error
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Setting:
    """What stands beside a field's type, as ``Annotated[int, Setting(at_least(1), "stage")]``."""

    rule: Rule
    scope: Scope


def one_of(*choices: str) -> Rule:
    """One of these words."""
    return Rule("one of " + ", ".join(choices), lambda value: value in choices)


def matching(pattern: str, expected: str) -> Rule:
    """A text that the regular expression matches as a whole."""
    return Rule(expected, lambda value: re.fullmatch(pattern, value) is not None)


def at_least(low: int) -> Rule:
    """A whole number from ``low`` on that fits in 32 bits."""
    return Rule(f"a whole number from {low} to 2^31 - 1", lambda value: low <= value < 2**31)


def number_in(low: float, high: float) -> Rule:
    """A number from ``low`` on and below ``high``."""
    return Rule(f"a number in [{low:g}, {high:g})", lambda value: low <= value < high)


def _is_path(value: str) -> bool:
    return Path(value).is_absolute() and value.isprintable()


SWITCH = Rule("a bool", lambda _: True)
POSITIVE = Rule("a finite number > 0", lambda value: 0 < value < float("inf"))
NOT_NEGATIVE = Rule("a finite number >= 0", lambda value: 0 <= value < float("inf"))
FINITE = Rule("a finite number", lambda value: abs(value) < float("inf"))
TWO_THIRDS = Rule(
    "0 (two thirds), or a number from 2/3 to 1", lambda value: value == 0 or 2 / 3 <= value <= 1
)
SHARE = Rule("a number in (0, 1]", lambda value: 0 < value <= 1)
DROPOUT = Rule("a number in [0, 0.9]", lambda value: 0 <= value <= 0.9)
OPEN_DROPOUT = Rule(
    "a number up to 0.9, negative = by the data", lambda value: -float("inf") < value <= 0.9
)

STAGE = Rule("0 (all stages in order), 1, 2 or 3", lambda value: value in (0, 1, 2, 3))
RUN_NAME = matching(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "letters, digits, '.', '_' and '-', at most 100"
)
HOME = Rule(
    "an absolute path, or one that starts with ~/",
    lambda value: _is_path(value) or (value.startswith("~/") and value.isprintable()),
)
DATASET = Rule(
    "an absolute path (the app runs from another folder), or empty for the demo",
    lambda value: not value or _is_path(value),
)
MLFLOW = matching(
    r"(local|[a-z][a-z0-9+]*://\S+)?", "local, the address of a tracking server, or empty for none"
)
HIDDEN_SIZE = Rule("a multiple of 4, 4 to 2^31 - 4", lambda value: value in range(4, 2**31, 4))
DEVICE = matching(r"auto|cpu|cuda(:[0-9]+)?", "auto, cpu, cuda or cuda:N")
