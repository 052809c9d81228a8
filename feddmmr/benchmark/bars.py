"""Bars: what a row of the table has to reach, and whether it does."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

Value = Callable[[str, str, str, str], float | None]  # row, group, protocol, metric
Difference = Callable[[str, str, str, str, str], tuple[float, float] | None]  # with its error


@dataclass(frozen=True)
class Bar:
    """``least`` as it stands, so many times ``chance``, or another row's figure times 1 + ``by``.

    With ``errors`` the difference to that row has to be beyond so many standard errors, too.
    """

    row: str
    protocol: str
    metric: str = "hr@10"
    group: str = "all"
    least: float = 0.0
    chance: float = 0.0
    above: str = ""
    by: float = 0.0
    errors: float = 0.0

    @property
    def what(self) -> str:
        """In words."""
        if self.above:
            beyond = f", beyond {self.errors:g} errors" if self.errors else ""
            against = f"{self.above} {self.by:+.0%}{beyond}" if self.by else f"{self.above}{beyond}"
        else:
            against = f"{self.chance:g} x chance" if self.chance else f"{self.least:g}"
        group = "" if self.group == "all" else f"{self.group} "
        return f"{self.row} {group}{self.protocol} {self.metric} >= {against}"


def held(
    bars: Iterable[Bar], value: Value, chance: Value, difference: Difference
) -> list[dict[str, Any]]:
    """Each bar with what it asks for and what was found; ``None`` where a row is not there."""
    return [
        asdict(bar) | {"what": bar.what} | _held(bar, value, chance, difference) for bar in bars
    ]


def _held(bar: Bar, value: Value, chance: Value, difference: Difference) -> dict[str, Any]:
    cell = (bar.group, bar.protocol, bar.metric)
    found, wanted = value(bar.row, *cell), bar.least
    beyond: float | None = None
    if bar.above:
        other = value(bar.above, *cell)
        wanted = float("nan") if other is None else other * (1 + bar.by)
        if bar.errors:
            paired = difference(bar.row, bar.above, *cell)
            beyond = None if paired is None or not paired[1] else paired[0] / paired[1]
    elif bar.chance:
        level = chance(bar.row, *cell)
        wanted = float("nan") if level is None else bar.chance * level
    if found is None or wanted != wanted:
        return {"found": found, "wanted": None, "beyond": beyond, "reached": None}
    enough = not bar.errors or (beyond is not None and beyond > bar.errors)
    reached = found >= wanted and enough
    return {"found": found, "wanted": wanted, "beyond": beyond, "reached": reached}
