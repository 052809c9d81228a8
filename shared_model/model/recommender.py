"""The model: an item table and a SASRec backbone, split into parameter groups by name."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared_model.errors import ModelError
from shared_model.model.catalogue.shortlist import Rows, Shortlist
from shared_model.model.catalogue.whole import Catalogue, WholeCatalogue
from shared_model.model.dropout import Dropout
from shared_model.model.initial import Normal, Starts, initialise
from shared_model.model.mixture import Candidates, Mixture
from shared_model.model.sasrec import EMBEDDING_STD, PAD, SASRec
from shared_model.model.shape import ModelShape as ModelShape
from shared_model.stages import STAGES, Stage, names_of

Arrays = dict[str, Tensor]


class Recommender(nn.Module):
    """Scores every item as the next one of a history: hidden state times item embedding.

    Only what the stage's forward pass uses is there; ``mixture`` is ``None`` in Stage 1.
    """

    starts: ClassVar[Starts] = {"item_embedding.weight": Normal(EMBEDDING_STD)}

    def __init__(self, shape: ModelShape, stage: Stage) -> None:
        super().__init__()
        self.shape = shape
        self.stage = stage
        self.frozen_sha256 = ""  # of the frozen groups that were loaded, on a node
        self._kept: tuple[str, Rows, Catalogue] | None = None
        # A table of one's own, since torch would draw a large one that nobody sees (`initialise`).
        rows, hidden = shape.num_items + 1, shape.hidden
        table = torch.empty(rows, hidden)
        self.item_embedding = nn.Embedding(rows, hidden, padding_idx=PAD, _weight=table)
        self.backbone = SASRec(shape.hidden, shape.heads, shape.blocks, shape.max_length)
        self.mixture: Mixture | None = None
        if stage.mixes:
            self.mixture = Mixture(
                shape.hidden, shape.visual, shape.text, shape.heads, "router" in stage.groups
            )

    def forward(
        self,
        inputs: Tensor,
        dropout: Dropout,
        padded: bool = True,
        vectors: Tensor | None = None,
    ) -> Tensor:
        """Hidden states. ``inputs`` [B, T] item indices, left padded -> [B, T, D].

        If nothing in them is padding, ``padded=False`` says so: attention then costs half.
        Histories are made of ``vectors`` [I+1, D], as ``catalogue.embedded`` has them; in Stage 1
        of the ID embeddings. ``ModelError`` where a mixture has others and is not asked for them.
        """
        if vectors is None and self.mixture is not None:
            raise ModelError(
                "histories of Stages 2 and 3 are made of IDs and content: say `vectors`"
            )
        table = self.item_embedding.weight if vectors is None else vectors
        valid = inputs != PAD if padded else None
        hidden: Tensor = self.backbone(functional.embedding(inputs, table, PAD), valid, dropout)
        return hidden

    def mix(self) -> Mixture:
        """The mixture of Stages 2 and 3; ``ModelError`` if the model was built for Stage 1."""
        if self.mixture is None:
            raise ModelError("the model has no mixture", expected="a model of Stage 2 or 3")
        return self.mixture

    def catalogue(self, visual: Rows, text: Rows, cold: Tensor, named: str = "") -> Catalogue:
        """The mixture over all items, padding too, for many users: of their features [I + 1, .],
        and which of them are ``cold`` [I + 1] bool.

        With a name, which tells parameters apart, it is made once for all nodes of a process: until
        it is asked for under another one, or with other features, or ``forget`` is called.
        """
        if self._kept and named and self._kept[0] == named and self._kept[1] is visual:
            return self._kept[2]
        self.forget()
        made = self._catalogue(visual, text, cold)
        self._kept = (named, visual, made) if named else None
        return made

    def forget(self) -> None:
        """Free the catalogue that is kept."""
        self._kept = None

    def _catalogue(self, visual: Rows, text: Rows, cold: Tensor) -> Catalogue:
        table = self.item_embedding.weight
        if table.device.type == "cpu":
            return Shortlist(self.mix(), table, visual, text, cold)
        names = torch.arange(len(table), device=table.device)
        parts = (table, visual[names], text[names], cold, names)
        return WholeCatalogue(self.mix(), Candidates(*(part[None] for part in parts)))

    def score(self, hidden: Tensor) -> Tensor:
        """The scoring rule of every stage: unnormalised dot products. [B, D] -> [B, I+1]."""
        return hidden @ self.item_embedding.weight.T


def build(
    shape: ModelShape,
    seed: int,
    device: str = "cpu",
    stage: Stage = STAGES[1],
    gate: float = 1.0,
) -> Recommender:
    """A freshly initialised model: each parameter is a function of its name and the seed."""
    # Not on "meta": to fill tensors there, torch imports its compiler, 4 s of every message.
    with torch.random.fork_rng(devices=[]):  # torch's own values, which are replaced below
        model = Recommender(shape, stage).to(device)
    initialise(model, seed)
    model.item_embedding.weight.data[PAD] = 0.0
    if model.mixture is not None:
        model.mixture.gate.data.fill_(gate)
    return model


def read_groups(model: nn.Module, groups: Iterable[str]) -> Arrays:
    """The parameters of the groups, by name, sharing memory with the model."""
    state = model.state_dict()
    return {name: state[name] for name in names_of(state, groups)}


def load_groups(model: nn.Module, arrays: Mapping[str, Tensor], groups: Iterable[str]) -> None:
    """Copy arrays into the groups, all of them and nothing else (invariant 4).

    ``ModelError`` lists every missing, unexpected or misshapen name; then nothing is copied.
    """
    own = read_groups(model, groups)
    check_arrays(own, arrays)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(arrays[name])


def check_arrays(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """``ModelError`` unless both have the same names with the same shapes and dtypes."""
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    misshapen = [
        f"{name} {list(given[name].shape)} {given[name].dtype} for {list(own[name].shape)}"
        for name in sorted(own.keys() & given.keys())
        if own[name].shape != given[name].shape or own[name].dtype != given[name].dtype
    ]
    faults = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(faults.values()):
        raise ModelError(
            "arrays do not fit the model",
            expected=f"{len(own)} arrays with the names and shapes of the parameter groups",
            got=", ".join(f"{kind}: {names}" for kind, names in faults.items() if names),
            todo="use the checkpoint, dataset and model settings of the same run",
        )


def freeze(model: nn.Module, stage: Stage) -> None:
    """Let gradients reach the stage's trained groups only."""
    named = dict(model.named_parameters())
    trained = set(names_of(named, stage.trained))
    for name, parameter in named.items():
        parameter.requires_grad_(name in trained)
