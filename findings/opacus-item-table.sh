#!/usr/bin/env bash
# opacus 1.6.0, the item table of a sequential recommender, noise off and nothing clipped, so that a step should be torch's own:
# - scores by `hidden @ items.weight.T`, as SASRec and GRU4Rec have them: the gradient of the scores is lost without a word
#   (the validator passes the model). Seen: 9 of 20 rows move, those in histories; targets and negatives do not. The same
#   table as the weight of an nn.Linear moves all 20 rows, and exactly as torch has it.
# - nn.Embedding(padding_idx=0): the padding row moves, where torch leaves it at zero.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uv venv --quiet --python 3.11 "$folder/env"
uv pip install --quiet --python "$folder/env" opacus==1.6.0 torch==2.15.0
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch
from opacus import PrivacyEngine
from opacus.validators import ModuleValidator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ITEMS, DIM = 20, 8
HISTORIES = torch.arange(1, 10)[torch.randint(0, 9, (64, 5), generator=torch.Generator().manual_seed(0))]
TARGETS = torch.arange(10, 20).repeat(7)[:64]


class Recommender(nn.Module):
    """The mean of a history, a layer, and scores of all items: "table", "tied" or "own" weights."""

    def __init__(self, scores: str, padding: int | None) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, DIM, padding_idx=padding)
        self.layer, self.scores = nn.Linear(DIM, DIM), scores
        if scores != "table":
            self.out = nn.Linear(DIM, ITEMS, bias=False)
        if scores == "tied":
            self.out.weight = self.items.weight

    def forward(self, histories: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(self.items(histories).mean(1))
        return hidden @ self.items.weight.T if self.scores == "table" else self.out(hidden)


def step(scores: str, histories: torch.Tensor, private: bool, padding: int | None = None) -> torch.Tensor:
    """How one step of SGD moves the item table."""
    torch.manual_seed(1)
    model = Recommender(scores, padding)
    before = model.items.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loader = DataLoader(TensorDataset(histories, TARGETS), batch_size=len(TARGETS))
    net = model
    if private:
        ModuleValidator.validate(model, strict=True)
        net, optimizer, loader = PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=loader,
            noise_multiplier=0.0, max_grad_norm=1e6, poisson_sampling=False,
        )  # fmt: skip
    for past, target in loader:
        nn.functional.cross_entropy(net(past), target).backward()
        optimizer.step()
    return model.items.weight.detach() - before


def rows(moved: torch.Tensor) -> int:
    return int((moved != 0).any(1).sum())


table = [step("table", HISTORIES, private) for private in (False, True)]
tied = [step("tied", HISTORIES, private) for private in (False, True)]
print(f"hidden @ items.weight.T: torch moves {rows(table[0])} rows, opacus {rows(table[1])}")
print(f"nn.Linear, tied:         torch moves {rows(tied[0])} rows, opacus {rows(tied[1])}")
assert torch.allclose(table[0], tied[0], atol=1e-6) and torch.allclose(tied[0], tied[1], atol=1e-6)
assert rows(table[0]) == 20 and rows(table[1]) == 9, "the gradient of the scores is no longer lost"

padded = HISTORIES.clone()
padded[:, :2] = 0
plain, private = (step("own", padded, private, padding=0)[0].norm().item() for private in (False, True))
print(f"padding row moves by: torch {plain}, opacus {private:.4f}")
assert plain == 0 and private > 1e-3, "the padding row stays now"
PYTHON
