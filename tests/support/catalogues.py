"""A small catalogue, users who remember some of it, and their scores by the mixture's formula."""

import torch

from shared_model.model.mixture import Candidates, Memories, Mixture
from shared_model.model.sasrec import PAD
from tests.support.naive_mixture import D, S, V, unit

ITEMS, USERS = 30, 6


def everything() -> Candidates:
    """A catalogue with padding, cold items, and items that lack a modality or both."""
    torch.manual_seed(1)
    visual, text = unit(ITEMS, V), unit(ITEMS, S)
    visual[[0, 4, 5]] = 0
    text[[0, 5, 6]] = 0
    cold = torch.arange(ITEMS) % 7 == 3
    return Candidates(
        torch.randn(1, ITEMS, D).double(),
        visual[None],
        text[None],
        cold[None],
        torch.arange(ITEMS)[None],
    )


def held() -> torch.Tensor:
    """Users that remember nothing, what lacks both modalities, everything, and one item."""
    held = torch.rand(USERS, ITEMS) < 0.3
    held[0] = False
    held[1] = torch.arange(ITEMS) == 5
    held[2] = True
    held[3] = torch.arange(ITEMS) == 8
    held[:, 0] = False
    return held


def by_the_formula(
    mixture: Mixture, items: Candidates, sequence: torch.Tensor, held: torch.Tensor
) -> torch.Tensor:
    """Each user alone, with a bank of what it remembers, as training scores candidates. [B, I]."""
    rows = []
    for state, own in zip(sequence, held, strict=True):
        few = own.nonzero()[:, 0] if own.any() else torch.tensor([PAD])
        features = items.names[:, few], items.visual[:, few], items.text[:, few]
        bank = Memories(*features, own[None, None, few])
        rows.append(mixture(state[None, None], items, bank).scores[0, 0])
    return torch.stack(rows)
