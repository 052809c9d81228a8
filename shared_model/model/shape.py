"""What fixes a model's arrays: sizes, and the modalities. It needs no torch, nor do settings."""

from dataclasses import dataclass

MODALITIES = ("visual", "text")


@dataclass(frozen=True)
class ModelShape:
    """What fixes every array's shape. Sizes are counts; ``num_items`` excludes padding."""

    num_items: int
    hidden: int
    heads: int
    blocks: int
    max_length: int
    visual: int = 0  # feature dimensions; what Stage 1 is built with does not depend on them
    text: int = 0
