"""A reference for the mixture: its formulas for one user, position and candidate at a time.

It has the experts' outputs in their native dimensions and the fused state, which the package's code
never makes. Also random worlds to compare on.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from shared_model.model.experts import _PICTURE_SCALE as PICTURE_SCALE
from shared_model.model.experts import _STRENGTH_SCALE as STRENGTH_SCALE
from shared_model.model.fusion import _FAMILIARITY_SCALE as FAMILIARITY_SCALE
from shared_model.model.mixture import Candidates, Memories, Mixture

B, P, N, L = 3, 2, 5, 7  # users, positions, candidates, items of a bank
D, V, S, HEADS = 8, 12, 6, 2


@dataclasses.dataclass(frozen=True)
class World:
    """What a mixture is asked about."""

    sequence: Tensor  # [B, P, D]
    items: Candidates
    memories: Memories


def random_mixture(routed: bool, scale: float = 0.4, gate: float = 0.7) -> Mixture:
    """A mixture with nothing at its initial value, in float64."""
    mixture = Mixture(D, V, S, HEADS, routed).double()
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape))
        mixture.gate.fill_(gate)
    return mixture


def silence(mixture: Mixture) -> None:
    """Content heads at zero, where they start."""
    for head in (mixture.experts.visual_head, mixture.experts.text_head):
        for parameter in head.parameters():
            nn.init.zeros_(parameter)


def random_world(shared: bool, candidates: int = N) -> World:
    """Missing modalities, cold candidates, an empty memory, a bank that ends in padding; three
    candidates stand in the bank, two of them cold."""
    rows = 1 if shared else B
    visual, text = catalogue(rows, candidates, V), catalogue(rows, candidates, S)
    visual[:, 1] = text[:, 2] = visual[:, 3] = text[:, 3] = 0
    cold = torch.zeros(rows, candidates, dtype=torch.bool)
    cold[:, [0, 2, 3]] = True
    names = torch.tensor([1, 2, 4, 10, 11])[:candidates].expand(rows, -1)
    items = Candidates(torch.randn(rows, candidates, D).double(), visual, text, cold, names)
    return World(torch.randn(B, P, D).double(), items, random_memories())


def random_memories() -> Memories:
    visual, text = catalogue(B, L, V), catalogue(B, L, S)
    visual[:, 2] = text[:, 3] = visual[:, 4] = text[:, 4] = 0
    visual[:, -2:] = text[:, -2:] = 0
    held = torch.rand(B, P, L) > 0.5
    held[:, :, -2:] = False  # padding
    held[0, 0] = False  # nothing remembered yet
    held[1, 0] = torch.arange(L) == 2  # something, but no picture
    held[1, 1] = torch.arange(L) == 0  # one item
    names = torch.arange(1, L + 1).expand(B, -1) * (torch.arange(L) < L - 2)
    return Memories(names, visual, text, held)


def catalogue(users: int, *shape: int) -> Tensor:
    """Features of items that have the same names, and so the same features, for all users."""
    return unit(1, *shape).repeat(users, 1, 1)


def unit(*shape: int) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape).double(), dim=-1)


def naive_scores(mixture: Mixture, world: World) -> Tensor:
    """Scores [B, P, N] by loops. No candidate meets itself in memory; one that is not cold is
    familiar instead."""
    rows, number = world.items.cold.shape
    users, positions = world.sequence.shape[:2]
    scores = torch.empty(users, positions, number, dtype=torch.float64)
    for b in range(users):
        for p in range(positions):
            for n in range(number):
                row = 0 if rows == 1 else b
                one = {k: v[row, n] for k, v in vars(world.items).items()}
                memories = world.memories
                held = [m for m in range(memories.held.shape[-1]) if memories.held[b, p, m]]
                others = [m for m in held if memories.names[b, m] != one["names"]]
                one["familiar"] = len(others) < len(held) and not one["cold"]
                remembered = [(memories.visual[b, m], memories.text[b, m]) for m in others]
                scores[b, p, n] = naive_score(mixture, world.sequence[b, p], one, remembered)
    return scores


def naive_score(mixture: Mixture, state: Tensor, item: Any, remembered: list[Any]) -> Tensor:
    """(state + gate * aux) . vector: ID and content, or of a cold one what stands for its ID."""
    prior = naive_weights(mixture, item["visual"], item["text"])
    experts = mixture.experts
    content = prior[0] * experts.visual_head(PICTURE_SCALE * item["visual"])
    content = content + prior[1] * experts.text_head(item["text"])
    strength = 1 + STRENGTH_SCALE * experts.strength
    vector = experts.unknown + strength * content if item["cold"] else item["ids"] + content
    pictures = [picture for picture, _ in remembered if picture.any()]
    texts = [text for _, text in remembered if text.any()]
    found = [
        naive_visual(experts.visual, item["visual"], pictures),
        naive_semantic(experts.text, vector, texts),
    ]
    aux = naive_fusion(mixture.fusion, state, found, prior)
    familiarity = FAMILIARITY_SCALE * mixture.fusion.familiarity * item["familiar"]
    result: Tensor = (state + mixture.gate * aux) @ vector + mixture.gate * familiarity
    return result


def naive_weights(mixture: Mixture, visual: Tensor, text: Tensor) -> list[Tensor]:
    """The weights of the modalities that the item has sum to one; Stage 2 has them equal."""
    router = mixture.router
    logits = torch.zeros(2, dtype=visual.dtype)
    if router is not None:
        both = torch.cat([visual, text])
        inner = router.expand.weight @ both + router.expand.bias
        logits = router.weigh.weight @ (inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))))
    odds = [
        logit.exp() if given.any() else torch.zeros_like(logit)
        for logit, given in zip(logits, (visual, text), strict=True)
    ]
    total = odds[0] + odds[1]
    return [odd / total if total > 0 else odd for odd in odds]


def softmax(logits: list[Tensor]) -> list[Tensor]:
    odds = [logit.exp() for logit in logits]
    total = torch.stack(odds).sum()
    return [odd / total for odd in odds]


def naive_visual(expert: Any, picture: Tensor, memory: list[Tensor]) -> Tensor:
    """What the candidate's picture finds among those in memory: [V], or zeros."""
    found = torch.zeros_like(picture)
    if memory:
        weights = softmax([(picture * expert.sharpness * other).sum() for other in memory])
        for weight, other in zip(weights, memory, strict=True):
            found = found + weight * other
    result: Tensor = expert.output.weight @ (PICTURE_SCALE * found)
    return result


def naive_semantic(expert: Any, vector: Tensor, memory: list[Tensor]) -> Tensor:
    """What the candidate's vector reads in the texts in memory, head by head: [S], or zeros."""
    query = expert.query.weight @ vector + expert.query.bias
    width, heads = len(query) // expert.heads, []
    for head in range(expert.heads):
        rows = slice(head * width, (head + 1) * width)
        mixed = torch.zeros_like(query[rows])
        if memory:
            keys = [(expert.key.weight @ text)[rows] for text in memory]
            weights = softmax([query[rows] @ key / width**0.5 for key in keys])
            for weight, text in zip(weights, memory, strict=True):
                mixed = mixed + weight * (expert.value.weight @ text)[rows]
        heads.append(mixed)
    result: Tensor = expert.output.weight @ torch.cat(heads)
    return result


def naive_fusion(fusion: Any, state: Tensor, found: list[Tensor], prior: list[Tensor]) -> Tensor:
    """Attention of the state over two tokens, with the router's weights as a prior: aux [D]."""
    query = fusion.query.weight @ state
    odds, values = [], []
    for modality, token, weight in zip(("visual", "text"), found, prior, strict=True):
        match = query @ (fusion.key[modality].weight @ token) / len(state) ** 0.5
        odds.append(weight * match.exp())
        values.append(fusion.value[modality].weight @ token)
    total = odds[0] + odds[1]
    mixed = torch.zeros_like(state)
    if total > 0:
        for odd, value in zip(odds, values, strict=True):
            mixed = mixed + odd / total * value
    result: Tensor = fusion.output.weight @ mixed
    return result
