"""Attack 1 on Stages 2 and 3: which items did the users of an update meet, by their features?

The item table is frozen there, but linear maps read the items' features, and the gradient of such a
map is a sum of outer products with what it read (Phong et al., IEEE TIFS 2018, section III): of a
user's targets in the content heads, of its remembered items in the experts. Features are public. An
item's score is how far an update moves what the map makes of it, less what other items have in
common with it: the length of the map's change along the item's whitened features. Scores of several
maps are standardised and added; the better sum counts.

Letters: W warm items, F dimensions of a modality.
"""

from collections.abc import Iterator

import numpy as np

from client_app.content import content_dims, open_content
from client_app.recall import Recall
from server_app.checkpoint import load_checkpoint
from server_app.manifest import Record
from shared_model.config import Settings
from shared_model.model import Arrays, Recommender, build, load_groups
from shared_model.stages import STAGES
from tools.audit_defences import Privacy, privacy_of
from tools.audit_run import AuditedRun
from tools.audit_scores import Floats
from tools.audit_updates import Attacker, Score

_HEADS = {"visual_head": "visual", "text_head": "text"}  # map, and the modality that it reads
_EXPERTS = {"visual.output": "visual", "text.key": "text", "text.value": "text"}
_SUMS = {"content heads": _HEADS, "experts": _EXPERTS, "all maps": _HEADS | _EXPERTS}
_RIDGE = 0.1  # of the mean variance of a dimension


class FeatureScores:
    """Scores of every warm item by the features of its modalities."""

    def __init__(self, features: dict[str, Floats]) -> None:
        self.probes = {kind: probes(rows) for kind, rows in features.items()}

    def __call__(self, seen: Arrays) -> dict[str, Floats]:
        """Each sum's scores [W] of the change of the maps."""
        found = {name: self._moved(seen, name, kind) for name, kind in _SUMS["all maps"].items()}
        return {what: np.sum([found[name] for name in maps], 0) for what, maps in _SUMS.items()}

    def _moved(self, seen: Arrays, name: str, kind: str) -> Floats:
        """How far a map moves along each item, standardised; 0 of an item without features. [W]"""
        along = self.probes[kind]
        there = along.any(1)
        moved = np.linalg.norm(along[there] @ seen[_array(name)].numpy().T, axis=1)
        scores = np.zeros(len(along))
        if there.any() and moved.std() > 0:
            scores[there] = (moved - moved.mean()) / moved.std()
        return scores


def probes(features: Floats) -> Floats:
    """Features whitened by their ridge covariance, as unit rows; zeros stay. [W, F]"""
    covariance = features.T @ features / len(features)
    ridge = _RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    if not features.any():
        return features
    whitened = np.linalg.solve(covariance + ridge, features.T).T
    norms = np.linalg.norm(whitened, axis=1, keepdims=True)
    unit: Floats = np.divide(whitened, norms, out=np.zeros_like(whitened), where=norms > 0)
    return unit


def content_cases(run: AuditedRun, privacy: Privacy) -> Iterator[tuple[str, Attacker, Score]]:
    """The complete ones of Stages 2 and 3, as they began and as they ended."""
    for number in (2, 3):
        record = run.document["stages"].get(str(number))
        if record is not None and record["status"] == "complete":
            yield from _cases_of(run, privacy, number, record)


def _cases_of(
    run: AuditedRun, privacy: Privacy, number: int, record: Record
) -> Iterator[tuple[str, Attacker, Score]]:
    settings = run.settings_of(record)
    own = privacy_of(settings, privacy.clip_norm, privacy.multiplier)
    content = open_content(run.dataset, settings.modalities, settings.device)
    mixing = settings.mixing("", record["memory_novelty"])
    names = tuple(_array(name) for name in _SUMS["all maps"])
    before = run.document["stages"][str(number - 1)]
    for when, source in (("first round", before), ("released", record)):
        arrays = load_checkpoint(run.folder / source["checkpoint"], source["sha256"])
        model = _model(run, settings, number, arrays, began=source is before)
        knows = (mixing, Recall(run.dataset, content))
        attacker = Attacker(run.dataset, settings, own, run.noise_key, model, names, knows)
        rows = {"visual": content.visual, "text": content.text}
        score = FeatureScores({k: v.cpu().numpy()[attacker.warm] for k, v in rows.items()})
        yield f"stage {number}, {when}", attacker, score


def _model(
    run: AuditedRun, settings: Settings, number: int, arrays: Arrays, began: bool
) -> Recommender:
    """A stage's model as it was when the stage began, or with what it released."""
    stage = STAGES[number]
    shape = settings.shape(run.dataset.num_items, *content_dims(run.dataset))
    model = build(shape, settings.seed, settings.device, stage, settings.initial_gate)
    load_groups(model, arrays, stage.loaded if began else stage.groups)
    return model


def _array(name: str) -> str:
    return f"mixture.experts.{name}.weight"
