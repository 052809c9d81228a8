"""Attack 2: was this interaction in the training history? Asked of the released model.

Members are a user's last two training interactions, the others its validation and its test
interaction: the same users, neighbouring places in their histories, each predicted from all that
came before it. Two scores of an interaction:

loss: how low the model's loss on it is. Yeom et al., "Privacy Risk in Machine Learning" (CSF 2018).
calibrated loss: how much lower than that of a reference model, which was trained on other users.
    Watson et al., "On the Importance of Difficulty Calibration in Membership Inference Attacks"
    (ICLR 2022): an item that is easy for everyone says nothing.

The control is the first attack on the reference model, which saw neither kind: what it finds comes
from the places and the items, not from membership.

Letters: N users, B of a batch, T positions, W warm items.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client_app.data.dataset import Dataset, Rows, partition_rows
from client_app.data.folder import PAD
from feddmmr.audit.defences import UNDEFENDED
from feddmmr.audit.run import AuditedRun
from feddmmr.audit.scores import Bools, Floats, auc, chance_deviation, true_positives
from shared_model.errors import DataError
from shared_model.model.dropout import Dropout
from shared_model.model.recommender import Recommender
from shared_model.protocol.config import Value

BACK = (4, 3, 2, 1)  # places from a history's end
TRAINED = (True, True, False, False)  # which of them a run trains on
FALSE_POSITIVES = 0.01
REFERENCE = "reference"  # the name of the reference model's training
PARTS = 2  # the reference model is trained on part 0, the users of part 1 are attacked
_AUC, _TPR = "AUC", "TPR at 1% FPR"
_CHANCE = {_AUC: 0.5, _TPR: FALSE_POSITIVES}
_LOSS, _CALIBRATED = "loss", "calibrated loss"
_BATCH = 64


def membership_attack(
    run: AuditedRun, defences: dict[str, dict[str, Value]]
) -> list[dict[str, Any]]:
    """The attack on the run's twin under each defence."""
    rows = attacked_users(run.dataset)
    members = np.tile(TRAINED, len(rows))
    reference = run.twin(REFERENCE, defences[UNDEFENDED], _others(run))
    easy = losses(run.model(reference.arrays), run.dataset, rows)
    found = {}
    for name, overrides in defences.items():
        own = losses(run.model(run.twin(name, overrides).arrays), run.dataset, rows)
        found[name] = membership_figures(own, easy, members)
    control = membership_figures(easy, easy, members)
    return [
        {
            "attack": "membership",
            "case": score,
            "metric": metric,
            **{name: found[name][score][metric] for name in defences},
            "chance": chance,
            "control": control[score][metric] if score == _LOSS else None,
            "chance_deviation": chance_deviation(members) if metric == _AUC else None,
            "interactions": len(members),
        }
        for score in (_LOSS, _CALIBRATED)
        for metric, chance in _CHANCE.items()
    ]


def membership_figures(
    own: Floats, reference: Floats, members: Bools
) -> dict[str, dict[str, float | None]]:
    """Both scores' figures from an attacked and a reference model's losses; [n] each."""
    scores = {_LOSS: -own, _CALIBRATED: reference - own}
    return {
        name: {
            _AUC: auc(score, members),
            _TPR: true_positives(score, members, FALSE_POSITIVES),
        }
        for name, score in scores.items()
    }


def attacked_users(dataset: Dataset) -> Rows:
    """Users of the part that the reference model never saw, with two training targets. [N]"""
    rows = partition_rows(dataset, PARTS - 1, PARTS)
    rows = rows[dataset.lengths(rows) > max(BACK)]
    if not len(rows):
        raise DataError(
            "no user has interactions to attack",
            where=str(dataset.folder),
            expected=f"users with more than {max(BACK)} interactions",
        )
    return rows


@torch.no_grad()
def losses(model: Recommender, dataset: Dataset, rows: Rows) -> Floats:
    """Nats of each user's last four interactions, each after all before it. [4 * N], by user."""
    device = model.item_embedding.weight.device
    cold = torch.from_numpy(dataset.cold).to(device)
    cold[PAD] = True
    parts = []
    for start in range(0, len(rows), _BATCH):
        inputs, targets = _cases(dataset, rows[start : start + _BATCH], model.shape.max_length)
        hidden = model(inputs.to(device), Dropout())[:, -1]  # [4 * B, D]
        scores = model.score(hidden).masked_fill(cold, -torch.inf)
        own = scores.gather(1, targets.to(device)[:, None])[:, 0]
        parts.append((scores.logsumexp(1) - own).cpu())
    found: Floats = torch.cat(parts).double().numpy()
    return found


def _cases(dataset: Dataset, rows: Rows, max_length: int) -> tuple[Tensor, Tensor]:
    """Histories before each attacked interaction, left padded [4 * B, T], and it [4 * B]."""
    inputs = np.full((len(rows) * len(BACK), max_length), PAD, dtype=np.int64)
    targets = np.zeros(len(inputs), dtype=np.int64)
    places = [dataset.indptr[row + 1] - back for row in rows for back in BACK]
    starts = np.repeat(dataset.indptr[rows], len(BACK))
    for case, (start, place) in enumerate(zip(starts, places, strict=True)):
        before = dataset.items[max(start, place - max_length) : place]
        inputs[case, max_length - len(before) :] = before
        targets[case] = dataset.items[place]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _others(run: AuditedRun) -> Path:
    """A dataset folder of the users that are not attacked, written once."""
    from feddmmr.data.importers import split_dataset

    folder = run.work / f"parts-{run.data_sha256[:12]}"
    if not folder.is_dir():
        split_dataset(run.dataset.folder, folder, PARTS)
    return folder / "part-0"
