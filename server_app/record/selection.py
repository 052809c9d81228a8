"""The validation figure by which a stage's best round is chosen."""

import math
from collections.abc import Mapping
from typing import Any

# Full NDCG@10 of known items, among cold ones if there are any, and, from Stage 2 on, of what
# content alone tells ("as-cold"). Content that outshouts all IDs gains in the second and loses in
# the first.
SELECT_KNOWN, SELECT_CONTENT = ("all-with-cold", "all"), "as-cold"
SELECT_BY = ("full", "ndcg@10")


def selected(entry: Mapping[str, Any]) -> float:
    """The sum by which rounds are compared, of a round or a stage's record."""
    return sum(selected_parts(entry["valid"]).values())


def selected_parts(valid: Mapping[str, Any]) -> dict[str, float]:
    """What is summed, by group."""
    protocol, metric = SELECT_BY
    known = next(group for group in SELECT_KNOWN if group in valid)
    groups = [known, SELECT_CONTENT] if SELECT_CONTENT in valid else [known]
    return {group: float(valid[group][protocol][metric]) for group in groups}


def without_say(valid: Mapping[str, Any]) -> str:
    """Why content alone had no say in the choice, or nothing if it had one.

    It has none where its part is below the standard error of the other one, of which a figure
    between 0 and 1 has at most that of a share: a round then wins by what known items score.
    """
    if SELECT_CONTENT not in valid:
        return ""
    (known, figure), *content = selected_parts(valid).items()
    error = math.sqrt(figure * (1 - figure) / valid[known][SELECT_BY[0]]["users"])
    ((group, part),) = content
    if part >= error:
        return ""
    return (
        f"{group}, full: NDCG@10 {part:.4f} is below the standard error of {known!r} "
        f"({figure:.4f} +- {error:.4f}), which alone has chosen the best round"
    )
