"""Cross-modal fusion: SASRec's state chooses between what the two experts found.

Letters: B users, P positions, N candidates, L remembered items, H heads, D hidden size, V and S the
experts' dimensions.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from shared_model.model.initial import Starts
from shared_model.model.looking import FLOOR
from shared_model.model.matmul import Linear
from shared_model.model.router import MODALITIES

# A weight that has to travel far, from 0 to several nats: on this scale Adam takes it there.
_FAMILIARITY_SCALE = 20.0
_LEAST_PRIOR = 1e-9  # of a modality that counts at all


class CrossModalFusion(nn.Module):
    """Attention over two tokens, the experts' outputs, with the router's weights as a prior.

    And one number for what the experts must not have to find out from features: the candidate is
    itself in memory, and what was chosen once may be chosen again rarely, or gladly (compare the
    repeat mode of Ren et al., "RepeatNet", AAAI 2019). It does not depend on content.

    Its output starts at zero: a stage begins exactly where the last one ended (invariant 2). The
    layers before it move one step later.
    """

    starts: ClassVar[Starts] = {"output.weight": 0.0, "familiarity": 0.0}

    def __init__(self, hidden: int, visual: int, text: int) -> None:
        super().__init__()
        sizes = dict(zip(MODALITIES, (visual, text), strict=True))
        self.query = Linear(hidden, hidden, bias=False)
        self.key = nn.ModuleDict({m: Linear(n, hidden, bias=False) for m, n in sizes.items()})
        self.value = nn.ModuleDict({m: Linear(n, hidden, bias=False) for m, n in sizes.items()})
        self.output = Linear(hidden, hidden, bias=False)
        self.familiarity = nn.Parameter(torch.empty(()))

    def project(self, modality: str, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of each remembered item: two of [B, H, L, D].

        ``memory`` [B, H, L, dim]: the expert's values of the items.
        """
        return self.key[modality](memory), self.value[modality](memory)

    def odds(self, attention: Tensor, excluded: Tensor) -> Tensor:
        """``attention`` [B, H, N, L] as probabilities, but for their sums; 0 where ``excluded``
        [B or 1, N, L]."""
        return unsummed(attention, -1).masked_fill(excluded[:, None], 0.0)

    def wanted(self, vectors: Tensor) -> Tensor:
        """What a fused state would have to be for candidates [..., N, D]: ``added`` is its product
        with a remembered item's value. [..., N, D]."""
        wanted: Tensor = vectors @ self.output.weight
        return wanted

    def seen(self, modality: str) -> tuple[Tensor, Tensor]:
        """What an expert's values are to candidates and to states, as maps: two of [D, dim].

        Products with a candidate's vector are what a value adds to its score; with a state, what
        makes the state listen.
        """
        key: Tensor = self.key[modality].weight  # type: ignore[assignment]
        value: Tensor = self.value[modality].weight  # type: ignore[assignment]
        return self.output.weight @ value, self.query.weight.T @ key

    def tokens(
        self, attention: Tensor, added: Tensor, scores: Tensor, mask: Tensor, excluded: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One modality's token: its logit by the state, and its value by the candidate.

        With the expert's attention over the L items that a position may use, summed over heads::

            a = softmax(attention where mask and not excluded)
            logit = sum_l a_l scores_l / sqrt(D)
            value = sum_l a_l added_l

        ``attention`` [B, H, L, N]: the expert's logits; ``added`` [B, H, L, N] and ``scores``
        [B, H, L, P]: products of remembered items with candidates and states, by ``seen``; ``mask``
        [B, P, L] bool: what a position remembers; ``excluded`` [B, L, N] bool: what a candidate
        must not meet there -> two of [B, P, N].

        The expert's output never exists: both results are linear in it, and so are averages over
        memory of numbers that each remembered item has by itself. Where a position may use
        nothing, both are 0.
        """
        odds = unsummed(attention, -2).masked_fill(excluded[:, None], 0.0)
        usable = mask.mT[:, None].to(odds.dtype)  # [B, 1, L, P]
        weighing = torch.cat([usable.expand_as(scores), usable * scores], -1)  # [B, H, L, 2 P]
        total, logit = (weighing.mT @ odds).chunk(2, -2)  # [B, H, P, N]
        total = total + (total == 0).to(total.dtype)
        value = usable.mT @ (odds * added) / total
        return (logit / total).sum(1), value.sum(1)

    def forward(self, logits: Tensor, values: Tensor, prior: Tensor, remembered: Tensor) -> Tensor:
        """What the fused state, and being remembered itself, add to the scores: [B, P, N].

        ``logits`` and ``values`` [B, P, N, 2] of the tokens, ``prior`` [B or 1, N, 2]; a modality
        whose prior is 0 adds nothing. ``remembered`` [B, P, N] bool: the candidate is in memory.
        """
        shown, told = prior[:, None].unbind(-1)  # [B or 1, 1, N]
        lead = lead_of(shown, told)
        # A softmax over two, as the logistic function of a difference.
        (logit, other_logit), (value, other) = logits.unbind(-1), values.unbind(-1)
        mixed = other + torch.sigmoid(logit - other_logit + lead) * (value - other)
        return mixed * (shown + told > 0) + self.familiar(remembered)

    def familiar(self, remembered: Tensor) -> Tensor:
        """What being ``remembered`` [...] bool itself adds to a candidate. [...]."""
        return _FAMILIARITY_SCALE * self.familiarity * remembered


def lead_of(shown: Tensor, told: Tensor) -> Tensor:
    """How far pictures are ahead of texts by their prior [...], in nats: infinite where one of them
    has none."""
    lead = shown.clamp(min=_LEAST_PRIOR).log() - told.clamp(min=_LEAST_PRIOR).log()
    return lead.masked_fill(told == 0, torch.inf).masked_fill(shown == 0, -torch.inf)


def unsummed(attention: Tensor, dim: int) -> Tensor:
    """Logits as probabilities along a dimension, but for their sums."""
    return (attention - attention.amax(dim, keepdim=True).detach()).clamp(min=FLOOR).exp()
