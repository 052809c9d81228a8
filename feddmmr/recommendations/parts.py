"""What a score is made of: the state's share, each modality's, familiarity, and whose memory spoke.

A modality's share is its expert's and what the state makes of the item's picture or text; what it
makes of the item's ID, or of an unknown one, is the state's own. The literal formula, with every
attention weight, where the model only has sums: the parts add up to the model's own score (a test
compares). Letters: N candidates, L remembered items, D hidden size, H heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared_model.model.catalogue.remembered import Said
from shared_model.model.mixture import Candidates, Memories, Mixture, Scores
from shared_model.model.router import MODALITIES, masked_softmax

PARTS = ("state", *MODALITIES, "familiarity")


@dataclass(frozen=True)
class Parts:
    """The parts of N scores of one user."""

    shares: Tensor  # [N, 4], as PARTS; the sum over them is the score
    by_content: Tensor  # [N, 2], of which the state makes this of the items' features
    attended: Tensor  # [N, 2], how the fusion weighed the modalities for this user
    remembered: dict[str, Tensor]  # modality -> [N, L], each remembered item's part of its share


def state_alone(scores: Tensor) -> Tensor:
    """The shares of scores [N] without a mixture: Stage 1 has the state's alone. [N, 4]."""
    return torch.nn.functional.pad(scores[:, None], (0, len(PARTS) - 1))


@torch.no_grad()
def shares_of(
    mixture: Mixture,
    said: Said,
    prior: Tensor,
    by_content: Tensor,
    familiar: Tensor,
) -> tuple[Tensor, Tensor]:
    """The shares of scores [N, 4], and how the fusion weighed the modalities [N, 2].

    ``said`` of the candidates, with the router's ``prior`` [N, 2]; ``by_content`` [N, 2]: what the
    state makes of their features; ``familiar`` [N], its own share.
    """
    attended = masked_softmax(said.logits + prior.clamp(min=1e-9).log(), prior > 0)
    by_memory = mixture.gate * attended * said.values + by_content
    by_id = said.base - by_content.sum(-1)
    return torch.cat([by_id[:, None], by_memory, familiar[:, None]], -1), attended


@torch.no_grad()
def parts_of(
    mixture: Mixture, state: Tensor, items: Candidates, memory: Memories, said: Scores
) -> Parts:
    """The parts of shared candidates' scores; ``state`` [D], one user at one position.

    ``said`` is what the mixture answered about them.
    """
    fusion, gate, vectors = mixture.fusion, mixture.gate, said.vectors[0]  # [N, D]
    itself = items.names[0][:, None] == memory.names[0]  # [N, L]
    logits, values = [], {}
    for modality in MODALITIES:
        attention, memories = _attention(mixture, modality, items, vectors, memory, itself)
        key, value = fusion.project(modality, memories)
        scores = fusion.query(state) @ key.mT  # [H, L]
        logits.append((attention * scores[:, None]).sum((0, 2)) * len(state) ** -0.5)
        added = (vectors @ fusion.output.weight) @ value.mT  # [H, N, L]
        values[modality] = (attention * added).sum(0)  # [N, L]
    prior = said.weights[0]  # [N, 2]
    attended = masked_softmax(torch.stack(logits, -1) + prior.clamp(min=1e-9).log(), prior > 0)
    shared = {m: gate * attended[:, i, None] * values[m] for i, m in enumerate(MODALITIES)}
    known = (itself & memory.held[0, 0]).any(-1) & ~items.cold[0]  # [N]
    nothing = torch.zeros(1, 1, *prior.shape)
    familiar = gate * fusion(nothing, nothing, prior[None], known[None, None])[0, 0]
    heads = mixture.experts.heads(items.visual[0], items.text[0], prior)  # [N, 2, D]
    by_content = mixture.experts.strengths(items.cold[0])[:, None] * (heads @ state)  # [N, 2]
    by_id = vectors @ state - by_content.sum(-1)
    by_memory = torch.stack([shared[m].sum(-1) for m in MODALITIES], -1)  # [N, 2]
    shares = torch.cat([by_id[:, None], by_memory + by_content, familiar[:, None]], -1)
    return Parts(shares, by_content, attended, shared)


def _attention(
    mixture: Mixture,
    modality: str,
    items: Candidates,
    vectors: Tensor,
    memory: Memories,
    itself: Tensor,
) -> tuple[Tensor, Tensor]:
    """An expert's attention over memory [H, N, L], and its values [H, L, size].

    No candidate meets itself; who meets nobody has zeros.
    """
    if modality == "visual":
        expert, features = mixture.experts.visual, memory.visual
        logits, values = expert.logits(items.visual, features), expert.values(features)
    else:
        semantic, features = mixture.experts.text, memory.text
        logits = semantic.logits(vectors[None], semantic.keys(features))
        values = semantic.values(features)
    usable = memory.held[0, 0] & features[0].any(-1) & ~itself  # [N, L]
    return masked_softmax(logits[0], usable.expand_as(logits[0])), values[0]
