"""Remembered items as numbers that candidates' vectors and users' states are multiplied by.

Letters: L items, M of them, H heads, D hidden size, V and S the feature dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared_model.model.matmul import linear
from shared_model.model.mixture import Mixture
from shared_model.model.router import there


@dataclass(frozen=True)
class Remembered:
    """Some remembered items in one modality, those that have it: projected once."""

    names: Tensor  # [M]
    attention: Tensor  # [M, V] pictures as they are compared, or [H, M, D] maps of a vector
    offset: Tensor  # [H, M, 1] of the attention
    key: Tensor  # [H, M, D], whose product with a state is how it weighs the modality
    value: Tensor  # [H, M, D], whose product with a candidate's vector is what it adds to its score

    def at(self, places: Tensor) -> "Remembered":
        """Some of them: [M] places."""
        return Remembered(
            self.names[places],
            self.attention.index_select(-2, places),
            self.offset.index_select(1, places),
            self.key.index_select(1, places),
            self.value.index_select(1, places),
        )


class Reader:
    """Projects remembered items by weights that are multiplied out before (``Mixture.maps``)."""

    def __init__(self, mixture: Mixture) -> None:
        experts, fusion = mixture.experts, mixture.fusion
        self.sharpness = experts.visual.sharpness
        scale = len(fusion.query.weight) ** -0.5  # of logits
        attention, self.offset = experts.text.attention()  # [H, D, S] and [H, S]
        value, key = (experts.visual.after(weight) for weight in fusion.seen("visual"))
        self.visual = torch.stack([value, key * scale])  # [2, 1, D, V]
        value, key = (experts.text.after(weight) for weight in fusion.seen("text"))
        self.text = torch.stack([attention, value, key * scale])  # [3, H, D, S]

    def pictures(self, names: Tensor, pictures: Tensor) -> Remembered:
        """Of items [L] with ``pictures`` [L, V]."""
        names, pictures = _having(names, pictures)
        value, key = _mapped(pictures, self.visual)
        offset = pictures.new_zeros(1, len(names), 1)
        return Remembered(names, pictures * self.sharpness, offset, key, value)

    def texts(self, names: Tensor, texts: Tensor) -> Remembered:
        """Of items [L] with ``texts`` [L, S]."""
        names, texts = _having(names, texts)
        attention, value, key = _mapped(texts, self.text)
        return Remembered(names, attention, linear(texts, self.offset).T[..., None], key, value)


def _having(names: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Without the items that lack the modality."""
    present = there(features)
    return names[present], features[present]


def _mapped(features: Tensor, maps: Tensor) -> Tensor:
    """Of items' ``features`` [L, F] by ``maps`` [C, H, D, F]: [C, H, L, D]."""
    said = linear(features, maps.flatten(0, 2)).view(len(features), *maps.shape[:3])
    return said.movedim(0, 2).contiguous()
