"""Shapes derived from types: what fits, and where in a value it does not."""

from typing import Annotated, Any, Literal, Never, NotRequired, TypedDict

import pytest

from server_app.record.shape import Has, Matches, Shaped, misshapen, shape_of


class Nothing(TypedDict):
    no_key: NotRequired[Never]


class Point(TypedDict):
    x: int
    y: float
    name: NotRequired[str]


@pytest.mark.parametrize(
    ("kind", "value", "faults"),
    [
        (str, "a", []),
        (int, True, ["at"]),  # JSON has both, and they are not the same
        (int, 1.0, ["at"]),
        (float, 1, []),
        (float | None, None, []),
        (float | None, "1", ["at"]),
        (Literal["a", "b"], "b", []),
        (Literal["a", "b"], ["b"], ["at"]),
        (Literal[2], 2.0, ["at"]),
        (dict[str, Any], {"a": object}, []),
        (dict[str, Any], [], ["at"]),
        (list[int], [1, "2", 3, None], ["at/1", "at/3"]),
        (dict[str, list[int]], {"a": [1], "b": [1, ""]}, ["at/b/1"]),
        (Point, {"x": 1, "y": 2}, []),
        (Point, {"x": 1, "y": 2, "name": 3, "more": 4}, []),  # not asked for
        (Point, {"x": "1"}, ["at/x", "at/y"]),
        (Point, None, ["at"]),
        (Nothing, {}, []),
        (Nothing, {"more": 1}, ["at"]),
        (Point | Nothing, {}, []),
        (Point | Nothing, {"x": 1, "y": 2}, []),
        (Point | Nothing, {"x": 1}, ["at"]),  # one fault: neither fits
        (Annotated[str, Matches("[a-f]+")], "abc", []),
        (Annotated[str, Matches("[a-f]+")], "abc\n", ["at"]),
        (Annotated[str, Matches("[a-f]+")], 7, ["at"]),
        (Annotated[dict[str, int], Has(("a",))], {"a": 1, "b": 2}, []),
        (Annotated[dict[str, int], Has(("a",))], {"b": None}, ["at/a", "at/b"]),
        (Annotated[dict[str, float], Shaped(Point)], {"x": 1, "z": None}, ["at/y"]),
    ],
)
def test_what_fits_and_what_does_not(kind: Any, value: Any, faults: list[str]) -> None:
    assert sorted(misshapen({"at": value}, {"at": shape_of(kind)})) == faults


def test_a_type_without_a_shape_is_refused() -> None:
    with pytest.raises(KeyError):
        shape_of(tuple)
