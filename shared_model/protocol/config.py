"""The run-config, read once into frozen dataclasses. Defaults live in ``pyproject.toml`` alone."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shared_model.errors import ConfigError
from shared_model.model.recommender import ModelShape
from shared_model.protocol.dp_rules import check_promise
from shared_model.protocol.plan import MixturePlan

Value = bool | int | float | str

SERVER_OPTIMIZERS = ("sgd", "momentum", "adam")
SERVER_SCHEDULES = ("constant", "decay")
WEIGHTINGS = ("targets", "uniform")
AGGREGATIONS = ("clipped", "mean", "median", "trimmed")
NOISE_ON = ("server", "nodes")
MODALITIES = ("both", "visual", "text")


@dataclass(frozen=True)
class Settings:
    """Every run-config key; a key is the field's name with ``-`` for ``_``."""

    stage: int
    run: str
    home: str
    dataset: str
    seed: int
    redo: bool
    tensorboard: bool
    num_rounds: int
    fraction_train: float
    local_steps: int
    client_learning_rate: float
    server_learning_rate: float
    server_optimizer: str
    server_schedule: str
    weighting: str
    aggregation: str
    trim_share: float
    dp_clip_norm: float
    dp_noise_multiplier: float
    dp_epsilon: float
    dp_delta: float
    dp_noise_on: str
    evaluate_every: int
    checkpoint_every: int
    patience: int
    round_timeout: float
    min_nodes: int
    node_timeout: float
    min_participation: float
    hidden_size: int
    num_heads: int
    num_blocks: int
    max_length: int
    dropout: float
    modalities: str
    initial_gate: float
    targets_per_user: int
    negatives: int
    id_dropout: float
    content_dropout: float
    alignment_weight: float
    alignment_temperature: float
    surprise_weight: float
    balance_weight: float
    memory_short_term: int
    memory_long_term: int
    memory_novelty: float
    memory_surprise: float
    users_per_batch: int
    device: str

    def shape(self, num_items: int, visual: int = 0, text: int = 0) -> ModelShape:
        """The model's shape for a catalogue of that many items with features of these sizes."""
        return ModelShape(
            num_items,
            self.hidden_size,
            self.num_heads,
            self.num_blocks,
            self.max_length,
            visual,
            text,
        )

    def mixing(self, frozen_sha256: str, novelty: float) -> MixturePlan:
        """What nodes are told of Stages 2 and 3, with the memory's threshold that was found."""
        return MixturePlan(
            frozen_sha256=frozen_sha256,
            short_term=self.memory_short_term,
            long_term=self.memory_long_term,
            novelty=novelty,
            surprise=self.memory_surprise,
            targets=self.targets_per_user,
            negatives=self.negatives,
            id_dropout=self.id_dropout,
            content_dropout=self.content_dropout,
            alignment_weight=self.alignment_weight,
            temperature=self.alignment_temperature,
            surprise_weight=self.surprise_weight,
            balance_weight=self.balance_weight,
        )

    @property
    def private(self) -> bool:
        """Whether the run promises differential privacy: each round's sum is noised."""
        return self.dp_noise_multiplier > 0

    @property
    def least_trained(self) -> float:
        """Share of the nodes that a round of training needs: ``min-participation``, or all where
        each draws a share of the noise, since a sum without one of them would lack it."""
        return 1.0 if self.private and self.dp_noise_on == "nodes" else self.min_participation

    @property
    def home_folder(self) -> Path:
        """Where runs and caches live on this machine; ``~`` is the user that runs the process."""
        return Path(self.home).expanduser()


def key_of(field: str) -> str:
    """The run-config key of a field."""
    return field.replace("_", "-")


_Rule = tuple[str, Callable[[Any], bool]]


def _one_of(*choices: str) -> _Rule:
    return "one of " + ", ".join(choices), lambda value: value in choices


def _matching(pattern: str, expected: str) -> _Rule:
    return expected, lambda value: re.fullmatch(pattern, value) is not None


def _at_least(low: int) -> _Rule:
    return f"a whole number from {low} to 2^31 - 1", lambda value: low <= value < 2**31


def _is_path(value: str) -> bool:
    return Path(value).is_absolute() and value.isprintable()


_POSITIVE: _Rule = ("a finite number > 0", lambda value: 0 < value < float("inf"))
_NOT_NEGATIVE: _Rule = ("a finite number >= 0", lambda value: 0 <= value < float("inf"))
_FINITE: _Rule = ("a finite number", lambda value: abs(value) < float("inf"))
_SHARE: _Rule = ("a number in (0, 1]", lambda value: 0 < value <= 1)

_RULES: dict[str, _Rule] = {
    "stage": ("0 (all stages in order), 1, 2 or 3", lambda value: value in (0, 1, 2, 3)),
    "run": _matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "letters, digits, '.', '_' and '-', at most 100"
    ),
    "home": (
        "an absolute path, or one that starts with ~/",
        lambda value: _is_path(value) or (value.startswith("~/") and value.isprintable()),
    ),
    "dataset": (
        "an absolute path (the app runs from another folder), or empty for the demo",
        lambda value: not value or _is_path(value),
    ),
    "seed": ("a whole number from 0 to 2^31 - 1", lambda value: 0 <= value < 2**31),
    "num_rounds": _at_least(0),
    "fraction_train": _SHARE,
    "local_steps": _at_least(1),
    "client_learning_rate": _POSITIVE,
    "server_learning_rate": _NOT_NEGATIVE,
    "server_optimizer": _one_of(*SERVER_OPTIMIZERS),
    "server_schedule": _one_of(*SERVER_SCHEDULES),
    "weighting": _one_of(*WEIGHTINGS),
    "aggregation": _one_of(*AGGREGATIONS),
    "trim_share": ("a number in [0, 0.5)", lambda value: 0 <= value < 0.5),
    "dp_clip_norm": _NOT_NEGATIVE,
    "dp_noise_multiplier": _NOT_NEGATIVE,
    "dp_epsilon": _NOT_NEGATIVE,
    "dp_delta": ("a number in [1e-10, 1)", lambda value: 1e-10 <= value < 1),
    "dp_noise_on": _one_of(*NOISE_ON),
    "evaluate_every": _at_least(1),
    "checkpoint_every": _at_least(1),
    "patience": _at_least(0),
    "round_timeout": _POSITIVE,
    "min_nodes": _at_least(1),
    "node_timeout": _POSITIVE,
    "min_participation": _SHARE,
    "hidden_size": ("a multiple of 4, 4 to 2^31 - 4", lambda value: value in range(4, 2**31, 4)),
    "num_heads": _at_least(1),
    "num_blocks": _at_least(1),
    "max_length": _at_least(1),
    "dropout": ("a number in [0, 0.9]", lambda value: 0 <= value <= 0.9),
    "modalities": _one_of(*MODALITIES),
    "initial_gate": _FINITE,
    "targets_per_user": _at_least(1),
    "negatives": _at_least(1),
    "id_dropout": ("a number in [0, 1)", lambda value: 0 <= value < 1),
    "content_dropout": ("a number in [0, 0.9]", lambda value: 0 <= value <= 0.9),
    "alignment_weight": _NOT_NEGATIVE,
    "alignment_temperature": _POSITIVE,
    "surprise_weight": _NOT_NEGATIVE,
    "balance_weight": _NOT_NEGATIVE,
    "memory_short_term": _at_least(1),
    "memory_long_term": _at_least(0),
    "memory_novelty": _FINITE,
    "memory_surprise": _FINITE,
    "users_per_batch": _at_least(1),
    "device": _matching(r"cpu|cuda(:[0-9]+)?", "cpu, cuda or cuda:N"),
}


def parse_settings(run_config: Mapping[str, Value]) -> Settings:
    """Check every key of a run-config. ``ConfigError`` for unknown, absent or wrong ones."""
    known = {key_of(field.name): field for field in fields(Settings)}
    _check_keys(set(run_config), set(known))
    values: dict[str, Any] = {
        field.name: _checked(key, field.name, field.type, run_config[key])
        for key, field in known.items()
    }
    settings = Settings(**values)
    if settings.hidden_size % settings.num_heads:
        raise ConfigError(
            "hidden-size does not divide into heads",
            where="run-config keys 'hidden-size' and 'num-heads'",
            expected="hidden-size as a multiple of num-heads",
            got=f"{settings.hidden_size} and {settings.num_heads}",
        )
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
                todo="correct the key's name" if what == "unknown" else "restore the default",
            )


def _checked(key: str, name: str, kind: Any, value: Value) -> Value:
    """The value in the field's own type. Whole numbers serve as floats; nothing else converts."""
    expected, holds = _RULES.get(name, (f"a {kind.__name__}", lambda _: True))
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or not holds(value):
        raise ConfigError(
            "wrong value",
            where=f"run-config key '{key}'",
            expected=f"{expected} ({kind.__name__})",
            got=f"{value!a:.200} ({type(value).__name__})",
        )
    return value


def default_config(pyproject: Path) -> dict[str, Value]:
    """The flat defaults of ``[tool.flwr.app.config]``, for tools and tests."""
    with pyproject.open("rb") as file:
        config: dict[str, Value] = tomllib.load(file)["tool"]["flwr"]["app"]["config"]
    return config
