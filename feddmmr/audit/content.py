"""Attack 1 on Stages 2 and 3: which items did the users of an update meet, by their features?

The item table is frozen there, but linear maps read the items' features, and the gradient of such a
map is a sum of outer products with what it read (Phong et al., IEEE TIFS 2018, section III): of a
user's targets in the content heads, of its remembered items in the experts. Features are public.
What an update changes in what a map makes of an item is scored in three ways, standardised and
added over maps; the best sum counts:

whitened: its length for whitened features, which have less in common with other items'. The best in
    a clean update; under noise, whitening enlarges what is noise alone.
plain: its length for centred features.
shadow direction: its projection on the difference between items met and not met in the updates of
    made-up users (as in audit_items.py).

Letters: W warm items, F dimensions of a modality.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from client_app.data.content import Content, content_dims, open_content
from client_app.memory.cache import Recall
from feddmmr.audit.defences import Privacy, privacy_of
from feddmmr.audit.run import AuditedRun
from feddmmr.audit.scores import Bools, Floats
from feddmmr.audit.updates import Attacker, Score, made_up_users
from server_app.record.checkpoint import load_checkpoint
from server_app.record.schema import StageRecord
from shared_model.device import torch_device
from shared_model.model.recommender import Arrays, Recommender, build, load_groups
from shared_model.protocol.config import Settings
from shared_model.stages import STAGES

_HEADS = {"visual_head": "visual", "text_head": "text"}  # map, and the modality that it reads
_EXPERTS = {"visual.output": "visual", "text.key": "text", "text.value": "text"}
_SUMS = {"content heads": _HEADS, "all maps": _HEADS | _EXPERTS}
_RIDGE = 0.1  # of the mean variance of a dimension


class FeatureScores:
    """Scores of every warm item by the features of its modalities: [W, F] each."""

    def __init__(self, features: dict[str, Floats]) -> None:
        self.there = {kind: np.asarray(rows.any(1)) for kind, rows in features.items()}
        self.whitened = {kind: probes(rows) for kind, rows in features.items()}
        self.centred = {kind: centred(rows) for kind, rows in features.items()}
        self.along: dict[str, Floats] = {}  # the shadow direction of each map [D]

    def __call__(self, seen: Arrays) -> dict[str, Floats]:
        """Each sum's scores [W] of the change of the maps."""
        found: dict[str, dict[str, Floats]] = {}
        for name, kind in _SUMS["all maps"].items():
            moved = seen[_array(name)].numpy().T
            plain = self.centred[kind] @ moved
            ways = {
                "whitened": np.linalg.norm(self.whitened[kind] @ moved, axis=1),
                "plain": np.linalg.norm(plain, axis=1),
            }
            if name in self.along:
                ways["shadow direction"] = plain @ self.along[name]
            for way, values in ways.items():
                found.setdefault(way, {})[name] = standardised(values, self.there[kind])
        return {
            f"{what}, {way}": np.sum([of[name] for name in maps], 0)
            for what, maps in _SUMS.items()
            for way, of in found.items()
        }

    def differences(self, seen: Arrays, met: Bools) -> dict[str, Floats]:
        """Of each map: what it changes of items met less that of items not met. [D]"""
        responses = {
            name: self.centred[kind] @ seen[_array(name)].numpy().T
            for name, kind in _SUMS["all maps"].items()
        }
        return {name: rows[met].mean(0) - rows[~met].mean(0) for name, rows in responses.items()}


def standardised(values: Floats, there: Bools) -> Floats:
    """Mean 0 and deviation 1 over the items that have features; 0 of the others. [W]"""
    scores = np.zeros(len(values))
    if there.any() and values[there].std() > 0:
        scores[there] = (values[there] - values[there].mean()) / values[there].std()
    return scores


def centred(features: Floats) -> Floats:
    """Features less their mean; zeros stay. [W, F]"""
    there = features.any(1, keepdims=True)
    found: Floats = np.where(there, features - features.sum(0) / max(1, there.sum()), 0.0)
    return found


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
    run: AuditedRun, privacy: Privacy, number: int, record: StageRecord
) -> Iterator[tuple[str, Attacker, Score]]:
    settings = run.settings_of(record)
    own = privacy_of(settings, privacy.clip_norm, privacy.multiplier)
    content = open_content(run.dataset, settings.modalities, torch_device(settings.device))
    novelty = record["memory_novelty"]
    assert novelty is not None  # noqa: S101 (for the type checker: a stage that mixes has one)
    mixing = settings.mixing("", novelty)
    names = tuple(_array(name) for name in _SUMS["all maps"])
    before = run.document["stages"][str(number - 1)]
    for when, source in (("first round", before), ("released", record)):
        arrays = load_checkpoint(run.folder / source["checkpoint"], source["sha256"])
        model = _model(run, settings, number, arrays, began=source is before)
        knows = (mixing, Recall(run.dataset, content))
        attacker = Attacker(run.dataset, settings, own, run.noise_key, model, names, knows)
        yield f"stage {number}, {when}", attacker, _score(attacker, content)


def _score(attacker: Attacker, content: Content) -> FeatureScores:
    """With the shadow directions of the attacker's model."""
    both = {"visual": content.visual, "text": content.text}
    warm = torch.from_numpy(attacker.warm)
    features = {kind: rows[warm.to(rows.device)].cpu().numpy() for kind, rows in both.items()}
    dataset = made_up_users(attacker.dataset, attacker.warm, attacker.settings.seed)
    assert attacker.mixing is not None  # noqa: S101 (for the type checker)
    mixing = (attacker.mixing[0], Recall(dataset, content))
    shadow, score = replace(attacker, dataset=dataset, mixing=mixing), FeatureScores(features)
    found = [score.differences(seen, met) for seen, met in shadow.shadows()]
    score.along = {name: np.mean([each[name] for each in found], axis=0) for name in found[0]}
    return score


def _model(
    run: AuditedRun, settings: Settings, number: int, arrays: Arrays, began: bool
) -> Recommender:
    """A stage's model as it was when the stage began, or with what it released."""
    stage = STAGES[number]
    shape = settings.shape(run.dataset.num_items, *content_dims(run.dataset))
    model = build(shape, settings.seed, torch_device(settings.device), stage, settings.initial_gate)
    load_groups(model, arrays, stage.loaded if began else stage.groups)
    return model


def _array(name: str) -> str:
    return f"mixture.experts.{name}.weight"
