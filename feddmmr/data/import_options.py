"""What `feddmmr data import` can be told, apart from the importers and what they need."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImportOptions:
    """What `feddmmr data import` can be told; its --help explains each."""

    format: str = "auto"
    items: Path | None = None
    features: Path | None = None
    visual_encoder: str = ""
    text_encoder: str = ""
    user_column: str = ""
    item_column: str = ""
    time_column: str = ""
    rating_column: str = ""
    separator: str = ""
    columns: tuple[str, ...] = ()
    min_rating: float | None = None
    duplicates: str = "refuse"
    ties: str = "hash"
    sort: bool = False
    most_active: int | None = None
    last: int | None = None
    k_core: int = 5
    new_items: str = "cold"
    cold_fraction: float = 0.0
    seed: int = 0
    name: str = ""
