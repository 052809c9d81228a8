"""The run-config: keys and values refused or read, once, into ``Settings``.

Defaults live in ``pyproject.toml`` alone.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared_model.errors import ConfigError
from shared_model.protocol.dp_rules import check_promise, check_secure
from shared_model.protocol.rules import Rule
from shared_model.protocol.settings import DECLARED
from shared_model.protocol.settings import Settings as Settings

Value = bool | int | float | str


def key_of(field: str) -> str:
    """The run-config key of a field."""
    return field.replace("_", "-")


def parse_settings(run_config: Mapping[str, Value]) -> Settings:
    """Check every key of a run-config. ``ConfigError`` for unknown, absent or wrong ones."""
    _check_keys(set(run_config), {key_of(name) for name in DECLARED})
    values: dict[str, Any] = {
        name: _checked(key_of(name), kind, setting.rule, run_config[key_of(name)])
        for name, (kind, setting) in DECLARED.items()
    }
    settings = Settings(**values)
    if settings.hidden_size % settings.num_heads:
        raise ConfigError(
            "hidden-size does not divide into heads",
            where="run-config keys 'hidden-size' and 'num-heads'",
            expected="hidden-size as a multiple of num-heads",
            got=f"{settings.hidden_size} and {settings.num_heads}",
        )
    check_secure(settings)
    check_promise(settings)
    return settings


def _check_keys(given: set[str], known: set[str]) -> None:
    for what, names in (("unknown", given - known), ("missing", known - given)):
        if names:
            raise ConfigError(
                f"{what} run-config key",
                where="run-config",
                expected="the keys of [tool.flwr.app.config] in pyproject.toml",
                got=", ".join(sorted(names)),
                todo=_meant(names, known) if what == "unknown" else "restore the default",
            )


def _meant(unknown: set[str], known: set[str]) -> str:
    """What to do about unknown keys: for each that is like a known one, that one."""
    near = [
        f"{key}: did you mean {match[0]}?"
        for key in sorted(unknown)
        if (match := difflib.get_close_matches(key, sorted(known), n=1))
    ]
    return " ".join(near) or "correct the key's name (docs/configuration.md has them all)"


def _checked(key: str, kind: type, rule: Rule, value: Value) -> Value:
    """The value in the field's own type. Whole numbers serve as floats; nothing else converts."""
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or not rule.holds(value):
        raise ConfigError(
            "wrong value",
            where=f"run-config key '{key}'",
            expected=f"{rule.expected} ({kind.__name__})",
            got=f"{value!a:.200} ({type(value).__name__})",
        )
    return value


def default_config(pyproject: Path) -> dict[str, Value]:
    """The flat defaults of ``[tool.flwr.app.config]``, for tools and tests."""
    with pyproject.open("rb") as file:
        config: dict[str, Value] = tomllib.load(file)["tool"]["flwr"]["app"]["config"]
    return config
