"""The settings: every run-config key as a field that declares its values and its scope.

A new setting is its field here, its default in ``pyproject.toml`` and its line in
docs/configuration.md; what a resumed run or a later stage may change is derived from the scopes.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, get_args

from shared_model.errors import ConfigError
from shared_model.model.shape import MODALITIES, ModelShape
from shared_model.protocol.plan import MixturePlan, RoundPlan
from shared_model.protocol.rules import (
    DATASET,
    DEVICE,
    DROPOUT,
    FINITE,
    HIDDEN_SIZE,
    HOME,
    MLFLOW,
    NOT_NEGATIVE,
    OPEN_DROPOUT,
    POSITIVE,
    RUN_NAME,
    SHARE,
    STAGE,
    SWITCH,
    TWO_THIRDS,
    Scope,
    Setting,
    at_least,
    number_in,
    one_of,
)

SERVER_OPTIMIZERS = ("sgd", "momentum", "adam")
SERVER_SCHEDULES = ("constant", "decay")
WEIGHTINGS = ("targets", "uniform")
AGGREGATIONS = ("clipped", "mean", "median", "trimmed", "secure")
SERVERS = ("lying", "curious")
NOISE_ON = ("server", "nodes", "secure")
_WHOLE, _DRAWN = 30_000, 2_048  # warm items: of up to so many all compete, of more a sample
WIRE_DTYPES = ("float32", "bfloat16", "int8")
MODALITY_CHOICES = ("both", *MODALITIES)


@dataclass(frozen=True)
class Settings:
    """Every run-config key; a key is the field's name with ``-`` for ``_``."""

    stage: Annotated[int, Setting(STAGE, "operational")]
    run: Annotated[str, Setting(RUN_NAME, "operational")]
    home: Annotated[str, Setting(HOME, "operational")]
    dataset: Annotated[str, Setting(DATASET, "operational")]
    seed: Annotated[int, Setting(at_least(0), "run")]
    redo: Annotated[bool, Setting(SWITCH, "operational")]
    tensorboard: Annotated[bool, Setting(SWITCH, "operational")]
    mlflow: Annotated[str, Setting(MLFLOW, "operational")]
    num_rounds: Annotated[int, Setting(at_least(0), "stage")]
    fraction_train: Annotated[float, Setting(SHARE, "stage")]
    local_steps: Annotated[int, Setting(at_least(1), "stage")]
    client_learning_rate: Annotated[float, Setting(POSITIVE, "stage")]
    server_learning_rate: Annotated[float, Setting(NOT_NEGATIVE, "stage")]
    server_optimizer: Annotated[str, Setting(one_of(*SERVER_OPTIMIZERS), "stage")]
    server_schedule: Annotated[str, Setting(one_of(*SERVER_SCHEDULES), "stage")]
    weighting: Annotated[str, Setting(one_of(*WEIGHTINGS), "stage")]
    aggregation: Annotated[str, Setting(one_of(*AGGREGATIONS), "stage")]
    trim_share: Annotated[float, Setting(number_in(0, 0.5), "stage")]
    secure_threshold: Annotated[float, Setting(TWO_THIRDS, "operational")]
    secure_against: Annotated[str, Setting(one_of(*SERVERS), "operational")]
    dp_clip_norm: Annotated[float, Setting(NOT_NEGATIVE, "stage")]
    dp_noise_multiplier: Annotated[float, Setting(NOT_NEGATIVE, "stage")]
    dp_epsilon: Annotated[float, Setting(NOT_NEGATIVE, "stage")]
    dp_delta: Annotated[float, Setting(number_in(1e-10, 1), "stage")]
    dp_noise_on: Annotated[str, Setting(one_of(*NOISE_ON), "stage")]
    wire_dtype: Annotated[str, Setting(one_of(*WIRE_DTYPES), "run")]
    evaluate_every: Annotated[int, Setting(at_least(1), "stage")]
    evaluate_users: Annotated[int, Setting(at_least(0), "run")]
    checkpoint_every: Annotated[int, Setting(at_least(1), "operational")]
    patience: Annotated[int, Setting(at_least(0), "stage")]
    round_timeout: Annotated[float, Setting(POSITIVE, "operational")]
    min_nodes: Annotated[int, Setting(at_least(1), "operational")]
    node_timeout: Annotated[float, Setting(POSITIVE, "operational")]
    min_participation: Annotated[float, Setting(SHARE, "operational")]
    hidden_size: Annotated[int, Setting(HIDDEN_SIZE, "run")]
    num_heads: Annotated[int, Setting(at_least(1), "run")]
    num_blocks: Annotated[int, Setting(at_least(1), "run")]
    max_length: Annotated[int, Setting(at_least(1), "run")]
    dropout: Annotated[float, Setting(OPEN_DROPOUT, "stage")]
    modalities: Annotated[str, Setting(one_of(*MODALITY_CHOICES), "mixture")]
    initial_gate: Annotated[float, Setting(FINITE, "stage")]
    candidates: Annotated[int, Setting(at_least(0), "stage")]
    targets_per_user: Annotated[int, Setting(at_least(0), "stage")]
    negatives: Annotated[int, Setting(at_least(1), "stage")]
    id_dropout: Annotated[float, Setting(number_in(0, 1), "stage")]
    content_dropout: Annotated[float, Setting(DROPOUT, "stage")]
    alignment_weight: Annotated[float, Setting(NOT_NEGATIVE, "stage")]
    alignment_temperature: Annotated[float, Setting(POSITIVE, "stage")]
    surprise_weight: Annotated[float, Setting(NOT_NEGATIVE, "stage")]
    balance_weight: Annotated[float, Setting(NOT_NEGATIVE, "stage")]
    memory_short_term: Annotated[int, Setting(at_least(1), "mixture")]
    memory_long_term: Annotated[int, Setting(at_least(0), "mixture")]
    memory_novelty: Annotated[float, Setting(FINITE, "mixture")]
    memory_surprise: Annotated[float, Setting(FINITE, "mixture")]
    users_per_batch: Annotated[int, Setting(at_least(0), "operational")]
    device: Annotated[str, Setting(DEVICE, "operational")]

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

    def round_plan(
        self, stage: int, round_: int, app_sha256: str = "", catalogue_sha256: str = ""
    ) -> RoundPlan:
        """What nodes are told of a round of a stage, before the server adds what it says of noise.

        A node compares the hashes with its own; who trains without asking a node needs none.
        ``ConfigError`` for settings whose dropout is still left to the data.
        """
        if self.dropout < 0:
            raise ConfigError("a plan of open settings", got=f"dropout={self.dropout}")
        return RoundPlan(
            stage=stage,
            round=round_,
            seed=self.seed,
            fraction=self.fraction_train,
            local_steps=self.local_steps,
            learning_rate=self.client_learning_rate,
            weighting=self.weighting,
            dropout=self.dropout,
            app_sha256=app_sha256,
            catalogue_sha256=catalogue_sha256,
            clip_norm=self.dp_clip_norm,
        )

    def mixing(self, frozen_sha256: str, novelty: float) -> MixturePlan:
        """What nodes are told of Stages 2 and 3, with the memory's threshold that was found.

        ``ConfigError`` for settings whose targets are still left to the data.
        """
        if not self.targets_per_user:
            raise ConfigError("a plan of open settings", got="targets-per-user=0")
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

    def drawn_candidates(self, stage: int, warm: int) -> int:
        """How many items of ``warm`` are drawn for the loss of a round of Stage 1; 0 = all compete.

        None with noise, which is on every row of the table, and covers nothing that is said aside;
        none with secure sums, which hide every row.
        """
        if stage != 1 or self.private or self.secure:
            return 0
        count = self.candidates or (0 if warm <= _WHOLE else _DRAWN)
        return count if 2 * count < warm else 0

    @property
    def private(self) -> bool:
        """Whether the run promises differential privacy: each round's sum is noised."""
        return self.dp_noise_multiplier > 0

    @property
    def least_trained(self) -> float:
        """Share of the nodes that a round of training needs: ``min-participation``, or all where
        each draws a share of the noise, since a sum without one of them would lack it; at least
        two thirds where sums are secure."""
        if self.secure:
            return max(self.secure_threshold or 2 / 3, self.min_participation)
        return 1.0 if self.private and self.dp_noise_on == "nodes" else self.min_participation

    @property
    def secure(self) -> bool:
        """Whether nobody sees a node's update: sums are made of masked vectors."""
        return self.aggregation == "secure"

    @property
    def shares_noise(self) -> bool:
        """Whether each site adds its share of the noise to a sum of which nobody sees the parts."""
        return self.private and self.dp_noise_on == "secure"

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on a round's sum, in every number; 0 = none."""
        return self.dp_noise_multiplier * self.dp_clip_norm

    @property
    def home_folder(self) -> Path:
        """Where runs and caches live on this machine; ``~`` is the user that runs the process."""
        return Path(self.home).expanduser()


# What each field declares: its type, and the rule and scope beside it.
DECLARED: dict[str, tuple[type, Setting]] = {
    field.name: get_args(field.type) for field in fields(Settings)
}


def fields_of(*scopes: Scope) -> tuple[str, ...]:
    """The names of the fields that have one of these scopes, in their order."""
    return tuple(name for name, (_, setting) in DECLARED.items() if setting.scope in scopes)
