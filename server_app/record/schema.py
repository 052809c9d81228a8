"""The manifest's one declaration (docs/manifest.md says what each field means; a test compares).

A file lacks none of the required keys: they are checked when it is read (manifest_file.py). What is
``NotRequired`` is there where it applies, or is only shown: a run goes on without it.
"""

from typing import Annotated, Any, Final, Literal, Never, NotRequired, TypedDict, final

from server_app.record.shape import Has, Matches, Shaped

FORMAT: Final = 2  # of ManifestDocument

Sha256 = Annotated[str, Matches("([0-9a-f]{64})?")]  # empty: of nothing
FileName = Annotated[str, Matches(r"([A-Za-z0-9][\w.-]{0,199}\.safetensors)?")]  # empty: none
Config = dict[str, Any]  # by field of Settings
Status = Literal["running", "complete", "failed", "stale"]
Split = Literal["valid", "test"]
SPLITS: tuple[Split, ...] = ("valid", "test")
Mishap = Literal["dropped", "clipped"]  # of a node in a round
MISHAPS: tuple[Mishap, ...] = ("dropped", "clipped")
Part = Literal["dataset", "features"]  # what a run is tied to
PARTS: tuple[Part, ...] = ("dataset", "features")

Figures = TypedDict(
    "Figures",
    {
        "hr@5": NotRequired[float],
        "hr@10": float,
        "hr@20": NotRequired[float],
        "ndcg@5": NotRequired[float],
        "ndcg@10": float,
        "ndcg@20": NotRequired[float],
        "mrr": NotRequired[float],
        "users": float,
        "candidates": NotRequired[float],
    },
)
_Cell = Annotated[dict[str, float], Shaped(Figures)]
_Protocols = Annotated[dict[str, _Cell], Has(("full",))]
Results = dict[str, _Protocols]  # group -> protocol -> figures: metrics.Report


@final
class Empty(TypedDict):
    """``{}``, where there is nothing to tell."""

    no_key: NotRequired[Never]  # or else a type checker takes every record for one of these


class AppRecord(TypedDict):
    """Code, packages and what else may change a run's last bits."""

    name: NotRequired[str]
    version: NotRequired[str]
    sha256: Sha256
    python: NotRequired[str]
    threads: NotRequired[int]
    packages: NotRequired[dict[str, str]]


class DatasetRecord(TypedDict):
    """Counts, and fingerprints that no topology changes."""

    users: NotRequired[int]
    items: NotRequired[int]
    interactions: NotRequired[int]
    cold_items: NotRequired[int]
    catalogue_sha256: Sha256
    sha256: Sha256


class FeaturesRecord(TypedDict):
    """What is known of the items' features; an empty hash without any."""

    visual_dim: NotRequired[int | None]
    text_dim: NotRequired[int | None]
    visual_coverage: NotRequired[float | None]
    text_coverage: NotRequired[float | None]
    encoders: NotRequired[dict[str, str]]
    sha256: Sha256


class Drop(TypedDict):
    """A node that was left out, or a newcomer that was refused."""

    node: str
    reason: str


class Clip(TypedDict):
    """A node whose update was scaled down."""

    node: str
    factor: float


class RouterMeans(TypedDict):
    """Of the router's weights, over a round's participants."""

    visual: float
    text: float
    entropy: float


class MixtureLosses(TypedDict):
    """The losses of Stages 2 and 3 beside that of the next item."""

    alignment: float
    load_balance: float


class MemoryUse(TypedDict):
    """What a round's participants remember."""

    write_rate: float
    short_term: float
    long_term: float


class RoundRecord(TypedDict):
    """A round. Round 0 is the validation of what a stage starts from."""

    round: int
    participants: int
    nodes: int
    loss: float | None
    seconds: float
    bytes_down: int
    bytes_up: int
    dropped: list[Drop]
    valid: NotRequired[Results]
    epsilon: NotRequired[float]
    clipped: NotRequired[list[Clip]]
    left: NotRequired[list[str]]
    joined: NotRequired[list[str]]
    refused: NotRequired[list[Drop]]
    gate: NotRequired[float]
    router: NotRequired[RouterMeans]
    losses: NotRequired[MixtureLosses]
    memory: NotRequired[MemoryUse]


class LastRound(TypedDict):
    """The saved round that a stage in progress goes on from."""

    file: FileName
    sha256: Sha256
    round: int
    optimizer_steps: int


class Release(TypedDict):
    """A noised round that was shown to anybody outside."""

    round: int
    absent: list[str]
    noise: Sha256
    # Of a secure sum with the sites' noise: how much noise is in it, in clip norms, and what came.
    multiplier: NotRequired[float]
    arrays: NotRequired[Sha256]


class PrivacyLedger(TypedDict):
    """What a stage has released under differential privacy."""

    unit: NotRequired[str]
    clip_norm: float
    noise_multiplier: float
    noise_on: NotRequired[str]
    sampling_rate: float
    users: int
    nodes: dict[str, Sha256]
    made_by: dict[str, str]
    delta: float
    budget: float
    attempt: int
    secret_sha256: Sha256
    rounds: int
    releases: list[Release]
    epsilon: float
    epsilon_after: NotRequired[int]


class SecureRecord(TypedDict):
    """What a stage's secure sums promise (docs/security.md)."""

    against: str
    threshold: int
    sites: int


class ByData(TypedDict):
    """What a stage was trained with of what its settings may leave to the data."""

    num_rounds: int
    dropout: float
    targets_per_user: NotRequired[int]  # not in runs of before


class StageRecord(TypedDict):
    """What a run recorded for a stage."""

    status: Status
    app_sha256: Sha256
    parent_sha256: Sha256
    checkpoint: FileName
    sha256: Sha256
    last: LastRound | Empty
    loaded: list[str]
    trained: list[str]
    frozen: list[str]
    config: Config
    seed: int
    best_round: int
    rounds: list[RoundRecord]
    valid: Results
    test: Results
    test_dropped: list[Drop]
    privacy: PrivacyLedger | Empty
    memory_novelty: NotRequired[float | None]
    by_data: NotRequired[ByData]
    secure: NotRequired[SecureRecord]


class SupersededRound(TypedDict):
    """What is still asked of a redone stage's round; its other fields are kept, too."""

    round: int


class SupersededStage(TypedDict):
    """What is still asked of a redone stage's record; its other fields are kept, too."""

    stage: int
    checkpoint: FileName
    sha256: NotRequired[Sha256]
    last: dict[str, Any]
    rounds: list[SupersededRound]
    privacy: PrivacyLedger | Empty


class ManifestDocument(TypedDict):
    """The whole file."""

    format: Literal[2]
    run: str
    app: AppRecord
    dataset: DatasetRecord
    features: FeaturesRecord
    stages: dict[str, StageRecord]
    superseded: list[SupersededStage]
    seal: dict[str, Sha256]
