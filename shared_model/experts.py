"""Visual and semantic experts: what a user's memory says about a candidate, in each modality.

Letters: B rows (a user at a position), N candidates, K memory slots, D hidden size, V and S the
native dimensions of images (512 with CLIP's ViT-B-32) and texts (384 with MiniLM). Nothing is
squeezed before attention. A memory without a usable slot answers with zeros.
"""

import torch
from torch import Tensor, nn

_SHARPNESS = 10.0  # unit vectors have dot products in [-1, 1], far too flat for a softmax


class VisualExpert(nn.Module):
    """Light attention: the candidate looks for its like among the pictures in memory.

    Query, keys and values are the pictures' own features, so the only parameters are the weight of
    each feature in the comparison and the projection of what was found.
    """

    def __init__(self, visual: int) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.full((visual,), _SHARPNESS))
        self.output = nn.Linear(visual, visual, bias=False)

    def forward(self, candidates: Tensor, memory: Tensor, usable: Tensor) -> Tensor:
        """``candidates`` [B or 1, N, V], ``memory`` [B, K, V], ``usable`` [B, K] -> [B, N, V]."""
        logits = (candidates * self.sharpness) @ memory.transpose(1, 2)  # [B, N, K]
        values: Tensor = self.output(memory)  # [B, K, V]: before mixing, K is less than N
        return attend(logits, usable[:, None]) @ values


class SemanticExpert(nn.Module):
    """Multi-head cross-attention: the candidate's ID embedding asks the texts in memory.

    No key bias (it cannot matter) and no value bias (the output would only shift).
    """

    def __init__(self, hidden: int, text: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, text)
        self.key_value = nn.Linear(text, 2 * text, bias=False)
        self.output = nn.Linear(text, text, bias=False)

    def forward(self, candidates: Tensor, memory: Tensor, usable: Tensor) -> Tensor:
        """``candidates`` [B or 1, N, D], ``memory`` [B, K, S], ``usable`` [B, K] -> [B, N, S]."""
        query = self._split(self.query(candidates))  # [B or 1, H, N, S/H]
        key, value = (self._split(part) for part in self.key_value(memory).chunk(2, -1))
        logits = query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5  # [B, H, N, K]
        heads = attend(logits, usable[:, None, None]) @ value  # [B, H, N, S/H]
        found: Tensor = self.output(heads.transpose(1, 2).flatten(-2))
        return found

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)


def attend(logits: Tensor, usable: Tensor) -> Tensor:
    """Softmax over the usable entries of the last dimension; all zeros where there is none."""
    masked = logits.masked_fill(~usable, float("-inf"))
    anything = usable.any(-1, keepdim=True)
    weights = masked.masked_fill(~anything, 0.0).softmax(-1)
    return weights * anything
