"""The item-centric router: how much each modality counts for a candidate.

It weighs experts against each other only; it never competes with SASRec, whose share is fixed by
the residual path. Letters: N candidates, V and S feature dimensions.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared_model.model.initial import Starts
from shared_model.model.matmul import Linear
from shared_model.model.shape import MODALITIES as MODALITIES


class ItemCentricRouter(nn.Module):
    """From a candidate's features to two weights that sum to one.

    The last layer starts at zero, so that both modalities start equal (invariant 2); the first one
    gets its gradient as soon as the last has moved.
    """

    starts: ClassVar[Starts] = {"weigh.weight": 0.0}

    def __init__(self, visual: int, text: int, hidden: int) -> None:
        super().__init__()
        self.expand = Linear(visual + text, hidden)
        self.weigh = Linear(hidden, len(MODALITIES), bias=False)

    def forward(self, visual: Tensor, text: Tensor) -> Tensor:
        """``visual`` [..., N, V], ``text`` [..., N, S] -> weights [..., N, 2].

        A missing modality (zero features) has weight 0; so have both if both are missing.
        """
        logits = self.weigh(functional.gelu(self.expand(torch.cat([visual, text], -1))))
        return masked_softmax(logits, present(visual, text))


def masked_softmax(logits: Tensor, usable: Tensor) -> Tensor:
    """Softmax over the usable entries of the last dimension; all zeros where there is none."""
    anything = usable.any(-1, keepdim=True)
    masked = logits.masked_fill(~usable & anything, float("-inf"))
    return masked.softmax(-1) * anything


def present(visual: Tensor, text: Tensor) -> Tensor:
    """Which modalities each candidate has. [..., N, V] and [..., N, S] -> [..., N, 2] bool."""
    return torch.stack([there(visual), there(text)], -1)


def there(features: Tensor) -> Tensor:
    """Which rows [..., F >= 1] are not all zero: [...] bool. ``any`` takes 17 times as long."""
    zero: Tensor = (features.amax(-1) == 0) & (features.amin(-1) == 0)
    return ~zero


def uniform_weights(visual: Tensor, text: Tensor) -> Tensor:
    """Stage 2's router: the modalities that are there count the same. -> [..., N, 2]."""
    usable = present(visual, text).to(visual.dtype)
    return usable / usable.sum(-1, keepdim=True).clamp(min=1)


def load_balance(weights: Tensor) -> Tensor:
    """Load-balance loss of weights [..., N, 2]: 0 if modalities share evenly, 1 if one has all.

    The coefficient-of-variation form of Shazeer et al. (ICLR 2017, section 4) for two experts, over
    the candidates that had a choice: a missing modality is no imbalance of the router. [...].
    """
    choice = (weights > 0).all(-1, keepdim=True)
    share = (weights * choice).sum(-2) / choice.sum(-2).clamp(min=1)  # [..., 2]
    return (share - share.mean(-1, keepdim=True)).square().sum(-1) * len(MODALITIES)


def entropy(weights: Tensor) -> Tensor:
    """Mean entropy of weights [..., N, 2] in nats, over the candidates: [...]."""
    mean: Tensor = torch.special.entr(weights).sum(-1).mean(-1)
    return mean
