"""The item-centric router: how much each modality counts for a candidate.

It weighs experts against each other only; it never competes with SASRec, whose share is fixed by
the residual path. Letters: N candidates, V and S feature dimensions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared_model.experts import attend

MODALITIES = ("visual", "text")


class ItemCentricRouter(nn.Module):
    """From a candidate's features to two weights that sum to one.

    The last layer starts at zero, so that both modalities start equal (invariant 2); the first one
    gets its gradient as soon as the last has moved.
    """

    def __init__(self, visual: int, text: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(visual + text, hidden)
        self.weigh = nn.Linear(hidden, len(MODALITIES), bias=False)
        nn.init.zeros_(self.weigh.weight)

    def forward(self, visual: Tensor, text: Tensor) -> Tensor:
        """``visual`` [..., N, V], ``text`` [..., N, S] -> weights [..., N, 2].

        A missing modality (zero features) has weight 0; so have both if both are missing.
        """
        logits = self.weigh(functional.gelu(self.expand(torch.cat([visual, text], -1))))
        return attend(logits, present(visual, text))


def present(visual: Tensor, text: Tensor) -> Tensor:
    """Which modalities each candidate has. [..., N, V] and [..., N, S] -> [..., N, 2] bool."""
    return torch.stack([visual.any(-1), text.any(-1)], -1)


def uniform_weights(visual: Tensor, text: Tensor) -> Tensor:
    """Stage 2's router: the modalities that are there count the same. -> [..., N, 2]."""
    there = present(visual, text)
    return attend(torch.zeros_like(there, dtype=visual.dtype), there)


def load_balance(weights: Tensor) -> Tensor:
    """Load-balance loss of weights [..., N, 2]: 0 if modalities share evenly, 1 if one has all.

    The coefficient-of-variation form of Shazeer et al. (ICLR 2017, section 4) for two experts, over
    the candidates that had a choice: a missing modality is no imbalance of the router.
    """
    choice = (weights > 0).all(-1)
    share = (weights * choice[..., None]).flatten(0, -2).sum(0) / choice.sum().clamp(min=1)
    return (share - share.mean()).square().sum() * len(MODALITIES)


def entropy(weights: Tensor) -> Tensor:
    """Mean entropy of the weights in nats, over all leading dimensions."""
    mean: Tensor = torch.special.entr(weights).sum(-1).mean()
    return mean
