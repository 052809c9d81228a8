"""Run-config: defaults once, unknown keys and wrong values refused in one line."""

from dataclasses import fields

import pytest

from shared_model.errors import ConfigError
from shared_model.protocol.config import Settings, default_config, key_of, parse_settings
from tests.support.paths import ROOT

DEFAULTS = default_config(ROOT / "pyproject.toml")


def test_defaults_live_in_pyproject_and_nowhere_else() -> None:
    assert set(DEFAULTS) == {key_of(field.name) for field in fields(Settings)}
    settings = parse_settings(DEFAULTS)
    assert settings.hidden_size == DEFAULTS["hidden-size"]
    assert not any(field.default is not field.default_factory for field in fields(Settings))


def test_whole_numbers_serve_as_floats() -> None:
    settings = parse_settings(DEFAULTS | {"server-learning-rate": 1})
    assert type(settings.server_learning_rate) is float


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stage", 4),
        ("stage", "1"),
        ("stage", True),
        ("run", "../escape"),
        ("run", ""),
        ("home", "relative/home"),
        ("dataset", "relative/path"),
        ("seed", -1),
        ("redo", 1),
        ("num-rounds", 1.5),
        ("fraction-train", 0),
        ("fraction-train", 1.1),
        ("local-steps", 0),
        ("client-learning-rate", float("nan")),
        ("server-learning-rate", float("inf")),
        ("server-learning-rate", "fast"),
        ("server-optimizer", "adamw"),
        ("server-schedule", "cosine"),
        ("weighting", "equal"),
        ("evaluate-every", 0),
        ("patience", -1),
        ("min-participation", 0.0),
        ("hidden-size", 30),
        ("dropout", 1.0),
        ("modalities", "audio"),
        ("initial-gate", float("nan")),
        ("targets-per-user", -1),
        ("negatives", 0),
        ("id-dropout", 1.0),
        ("alignment-weight", -0.1),
        ("alignment-temperature", 0.0),
        ("surprise-weight", float("inf")),
        ("balance-weight", -1.0),
        ("memory-short-term", 0),
        ("memory-long-term", -1),
        ("memory-novelty", float("nan")),
        ("memory-surprise", float("inf")),
        ("device", "tpu"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_settings(DEFAULTS | {key: value})  # type: ignore[dict-item]
    line = str(raised.value)
    assert "\n" not in line
    assert f"'{key}'" in line
    assert repr(value) in line


def test_unknown_and_missing_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown run-config key.*num-round\b"):
        parse_settings(DEFAULTS | {"num-round": 3})
    with pytest.raises(ConfigError, match=r"missing run-config key.*num-rounds"):
        parse_settings({k: v for k, v in DEFAULTS.items() if k != "num-rounds"})


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(ConfigError, match="num-heads"):
        parse_settings(DEFAULTS | {"num-heads": 3})
