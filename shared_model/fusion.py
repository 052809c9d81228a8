"""Cross-modal fusion: SASRec's state chooses between what the two experts found.

Letters: B rows, N candidates, D hidden size, V and S the experts' dimensions.
"""

import torch
from torch import Tensor, nn

from shared_model.experts import attend


class CrossModalFusion(nn.Module):
    """Attention over two tokens, the experts' outputs, with the router's weights as a prior.

    Its output starts at zero: a stage begins exactly where the last one ended (invariant 2).
    """

    def __init__(self, hidden: int, visual: int, text: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.visual_norm = nn.LayerNorm(visual, elementwise_affine=False)
        self.text_norm = nn.LayerNorm(text, elementwise_affine=False)
        self.visual_key_value = nn.Linear(visual, 2 * hidden, bias=False)
        self.text_key_value = nn.Linear(text, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, hidden, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, sequence: Tensor, visual: Tensor, text: Tensor, prior: Tensor) -> Tensor:
        """``sequence`` [B, D], ``visual`` [B, N, V], ``text`` [B, N, S], ``prior`` [B or 1, N, 2].

        Returns [B, N, D]; a modality whose prior is 0 has no say.
        """
        visual_key, visual_value = self.visual_key_value(self.visual_norm(visual)).chunk(2, -1)
        text_key, text_value = self.text_key_value(self.text_norm(text)).chunk(2, -1)
        keys = torch.stack([visual_key, text_key], 2)  # [B, N, 2, D]
        logits = keys @ self.query(sequence)[:, None, :, None]  # [B, N, 2, 1]
        logits = logits.squeeze(-1) * keys.shape[-1] ** -0.5
        usable = (prior > 0).expand_as(logits)
        weights = attend(logits + prior.clamp(min=1e-9).log(), usable)  # [B, N, 2]
        values = torch.stack([visual_value, text_value], 2)  # [B, N, 2, D]
        fused: Tensor = self.output((weights[..., None] * values).sum(2))
        return fused
