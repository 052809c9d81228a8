"""The shape that JSON must have to be read as a declared type: derived, never written twice.

A shape is a test of a value, a list of one shape, or a dict of shapes, where more keys than the
named ones may be.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

_ANY = "any key"  # of a dict whose keys are free
_PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
    NoneType: (NoneType,),
}


@dataclass(frozen=True)
class Matches:
    """In ``Annotated[str, ...]``: the whole text matches a pattern."""

    pattern: str


@dataclass(frozen=True)
class Shaped:
    """In ``Annotated[dict[str, V], ...]``: read by computed names, shaped as a ``TypedDict``."""

    kind: Any


@dataclass(frozen=True)
class Has:
    """In ``Annotated[dict[str, V], ...]``: keys that are there, whatever others are."""

    keys: tuple[str, ...]


def shape_of(kind: Any) -> Any:
    """The shape of a type. ``KeyError`` for one that no declaration has needed so far.

    A ``TypedDict`` must have its required keys, in their shapes; one without any is ``{}`` and
    nothing else. Keys that are not required are not looked at.
    """
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        shapes = {name: shape_of(hints[name]) for name in kind.__required_keys__}
        return shapes or _is_empty
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _annotated(*args)
    if origin is list:
        return [shape_of(args[0])]
    if origin is dict:
        return {_ANY: shape_of(args[1])}
    if origin is Literal:
        return lambda value: any(type(value) is type(one) and value == one for one in args)
    if origin in (Union, UnionType):
        return _either([shape_of(one) for one in args])
    return _is_anything if kind is Any else _is(*_PLAIN[kind])


def misshapen(value: Any, shape: Any, path: str = "") -> Iterator[str]:
    """Paths of what is absent or does not have its shape; names and places joined by ``/``."""
    if isinstance(shape, list) and isinstance(value, list):
        for place, inner in enumerate(value):
            yield from misshapen(inner, shape[0], f"{path}/{place}")
    elif isinstance(shape, dict) and isinstance(value, dict):
        yield from (f"{path}/{name}"[1:] for name in shape.keys() - {_ANY} - value.keys())
        free = shape.get(_ANY, _is_anything)
        for name, inner in value.items():
            yield from misshapen(inner, shape.get(name, free), f"{path}/{name}")
    elif not callable(shape) or not shape(value):
        yield path[1:]


def _annotated(kind: Any, rule: Any) -> Any:
    if isinstance(rule, Matches):
        return lambda value: (
            isinstance(value, str) and re.fullmatch(rule.pattern, value) is not None
        )
    if isinstance(rule, Shaped):
        return shape_of(rule.kind)
    shape: dict[str, Any] = shape_of(kind)
    return shape | dict.fromkeys(rule.keys, shape[_ANY])


def _either(shapes: list[Any]) -> Callable[[Any], bool]:
    """Any of several: what has none of these shapes is one fault, wherever in it the fault lies."""
    return lambda value: any(not list(misshapen(value, shape)) for shape in shapes)


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds  # a bool is no int


def _is_empty(value: Any) -> bool:
    return bool(value == {})


def _is_anything(_: Any) -> bool:
    return True
