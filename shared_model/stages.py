"""The one table of stages and parameter groups (docs/stages.md)."""

from collections.abc import Iterable
from dataclasses import dataclass

from shared_model.errors import ConfigError, ModelError

TABLE = "item_embedding.weight"  # a row for each item, the first one for padding

_LITTLE = 30_000  # interactions

# How the names of each group's parameters begin.
GROUPS: dict[str, str] = {
    "item_embedding": "item_embedding.",
    "backbone": "backbone.",
    "experts": "mixture.experts.",
    "fusion": "mixture.fusion.",
    "gate": "mixture.gate",
    "router": "mixture.router.",
}


@dataclass(frozen=True)
class Stage:
    """Which parameter groups a stage trains and which it loads and freezes."""

    number: int
    title: str
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    default_rounds: int
    few_rounds: int  # of little data, as the demo is
    default_rate: float  # of the server optimizer (Adam)

    def rounds_for(self, interactions: int) -> int:
        """How many rounds the stage has by default, on so many interactions of all users."""
        return self.few_rounds if interactions < _LITTLE else self.default_rounds

    @property
    def groups(self) -> tuple[str, ...]:
        """Every group that the stage's forward pass uses."""
        return self.trained + self.frozen

    @property
    def loaded(self) -> tuple[str, ...]:
        """The groups that start as the stage before ended; the others start fresh."""
        before = STAGES[self.number - 1].groups if self.number > 1 else ()
        return tuple(group for group in self.groups if group in before)

    @property
    def mixes(self) -> bool:
        """Whether content has a say: the experts are part of the forward pass."""
        return "experts" in self.groups


_MIXTURE = ("experts", "fusion", "gate")
STAGES: dict[int, Stage] = {
    1: Stage(1, "ID backbone", ("item_embedding", "backbone"), (), 300, 60, 0.008),
    2: Stage(2, "alignment", _MIXTURE, ("item_embedding", "backbone"), 60, 30, 0.005),
    3: Stage(
        3, "routed mixture", ("backbone", *_MIXTURE, "router"), ("item_embedding",), 100, 30, 0.003
    ),
}


def stage_of(number: int) -> Stage:
    """The stage with that number; ``ConfigError`` if there is none."""
    if number not in STAGES:
        raise ConfigError(
            "no such stage",
            where="run-config key 'stage'",
            expected="0 (all) or one of " + ", ".join(map(str, STAGES)),
            got=str(number),
        )
    return STAGES[number]


def group_of(name: str) -> str:
    """The parameter group of a ``state_dict`` name; ``ModelError`` if the table has none."""
    for group, prefix in GROUPS.items():
        if name == prefix or (prefix.endswith(".") and name.startswith(prefix)):
            return group
    raise ModelError("a parameter without a group", where="shared_model/stages.py", got=name)


def names_of(names: Iterable[str], groups: Iterable[str]) -> list[str]:
    """The names that belong to the groups, sorted. ``ModelError`` for a group without a name."""
    wanted = set(groups)
    chosen = sorted(name for name in names if group_of(name) in wanted)
    missing = wanted - {group_of(name) for name in chosen}
    if missing:
        raise ModelError("parameter groups without parameters", got=", ".join(sorted(missing)))
    return chosen
