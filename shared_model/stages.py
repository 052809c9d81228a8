"""The one table of stages and parameter groups (design section 4)."""

from collections.abc import Iterable
from dataclasses import dataclass

from shared_model.errors import ConfigError, ModelError


@dataclass(frozen=True)
class Stage:
    """Which parameter groups a stage trains and which it loads and freezes."""

    number: int
    title: str
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    default_rounds: int

    @property
    def groups(self) -> tuple[str, ...]:
        """Every group that the stage's forward pass uses."""
        return self.trained + self.frozen


STAGES: dict[int, Stage] = {
    1: Stage(1, "ID backbone", ("item_embedding", "backbone"), (), 60),
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
    """The parameter group of a ``state_dict`` name: its first component."""
    return name.split(".", 1)[0]


def names_of(names: Iterable[str], groups: Iterable[str]) -> list[str]:
    """The names that belong to the groups, sorted. ``ModelError`` for a group without a name."""
    wanted = set(groups)
    chosen = sorted(name for name in names if group_of(name) in wanted)
    missing = wanted - {group_of(name) for name in chosen}
    if missing:
        raise ModelError("parameter groups without parameters", got=", ".join(sorted(missing)))
    return chosen
