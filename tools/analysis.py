"""The quality report of features: are they there, are they sound, do they tell anything?

It looks at the train part of the histories alone, since what it finds (which features to use, the
memory's threshold) are choices of training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from client_app.data import Dataset, open_dataset
from shared_model.errors import DataError
from shared_model.memory import MemorySettings, novelties, threshold_of
from tools.feature_files import FeatureFiles, read_features
from tools.similarity import Features, Histories, lifts, near_duplicates, random_mean

SQUEEZED = 128  # the hidden size: what features were squeezed to before attention once
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SETTINGS = MemorySettings(novelty=0.0, surprise=float("inf"))
Report = dict[str, Any]


def analyze(path: Path, users: int, novelty_users: int) -> tuple[Report, dict[str, Any]]:
    """The report of a dataset folder or features file, and what its picture needs beyond it.

    At most `users` users (0 = all), evenly spread over the folder's rows, tell the similarities and
    `novelty_users` the novelty. A features file has no histories, so it gets the plain facts only.
    Raises DataError if there are no features.
    """
    dataset = open_dataset(path.resolve()) if path.is_dir() else None
    files = read_features(path)
    if not files.arrays:
        raise DataError(
            "the dataset has no features",
            where=str(path),
            todo="make some with `feddmmr features encode`, import them with --features",
        )
    stored = norms(files)
    arrays = modalities(files)
    report: Report = {
        "source": str(path.resolve()),
        "items": len(next(iter(files.arrays.values()))),
        "encoders": files.encoders,
        "norms": stored,
        "modalities": {name: facts(array) for name, array in arrays.items()},
    }
    drawn: dict[str, Any] = {}
    if dataset is None:
        return report, drawn
    report["histories"] = {"users": dataset.num_users, "part": "train"}
    for key, count in (("similarity_users", users), ("novelty_users", novelty_users)):
        report["histories"][key] = len(_spread(dataset.num_users, count))
    histories = train_histories(dataset, users)
    few = train_histories(dataset, novelty_users)
    for name, array in arrays.items():
        entry = report["modalities"][name]
        entry["preferences"], drawn[name] = _preferences(array, histories, few)
        small = squeeze(array, SQUEEZED)
        entry["squeezed"], drawn[f"{name}, squeezed"] = _preferences(small, histories, few)
        entry["squeezed"] |= {"dim": small.shape[1], "method": "PCA without centring"}
    return report, drawn


def modalities(files: FeatureFiles) -> dict[str, Features]:
    """Arrays of rows of norm 1 or 0, with "combined" if there are two: both side by side."""
    arrays = {kind: _normalised(array) for kind, array in sorted(files.arrays.items())}
    if len(arrays) > 1:
        arrays["combined"] = _normalised(np.hstack(list(arrays.values())))
    return arrays


def facts(features: Features) -> Report:
    """Coverage, how alike all items are, and near-duplicates."""
    known = features.any(axis=1)
    duplicates, examples = near_duplicates(features, SETTINGS.duplicate)
    return {
        "dim": features.shape[1],
        "with_features": int(known.sum()),
        "coverage": float(known.mean()),
        "mean_cosine": random_mean(features[known]),
        "near_duplicates": {
            "cosine_at_least": SETTINGS.duplicate,
            "items": duplicates,
            "examples": [[a + 1, b + 1] for a, b in examples],  # item indices, from 1
        },
    }


def norms(files: FeatureFiles) -> dict[str, Report]:
    """Norms of the rows as they are stored, zero rows left out."""
    found = {}
    for kind, array in sorted(files.arrays.items()):
        norm = np.linalg.norm(array.astype(np.float64), axis=1)
        norm = norm[norm != 0]
        if not np.isfinite(norm).all():
            raise DataError(f"{kind} features have a NaN or infinity")
        values = (norm.min(), norm.mean(), norm.max()) if len(norm) else (0.0, 0.0, 0.0)
        found[kind] = dict(zip(("min", "mean", "max"), map(float, values), strict=True))
    return found


def squeeze(features: Features, dim: int) -> Features:
    """Project on the `dim` directions with the largest second moment, rows of norm 1 or 0.

    The best that any linear squeeze can keep of the inner products (Eckart and Young, 1936); no
    centring, so that a zero row stays "missing". Features that are small enough stay as they are.
    """
    if features.shape[1] <= dim:
        return features
    wide = features.astype(np.float64)
    _, directions = np.linalg.eigh(wide.T @ wide)  # ascending
    return _normalised(wide @ directions[:, -dim:])


def train_histories(dataset: Dataset, users: int) -> Histories:
    """Train items (all but the last two) of evenly spread users, from 0."""
    rows = _spread(dataset.num_users, users)
    items, offsets = dataset.histories(rows)
    lengths = np.diff(offsets)
    place = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
    train = place < np.repeat(lengths - 2, lengths)
    indptr = np.concatenate(([0], np.cumsum(lengths - 2)))
    return Histories(indptr, items[train].astype(np.int64) - 1)


def _preferences(
    features: Features, histories: Histories, few: Histories
) -> tuple[Report, npt.NDArray[Any]]:
    """Similarity of what users chose, and the novelty that their memories would meet."""
    padded = np.vstack([np.zeros((1, features.shape[1]), dtype=np.float32), features])
    split = np.split((few.items + 1).astype(np.int32), few.indptr[1:-1])
    values = novelties(padded, split, SETTINGS)
    quantiles = np.quantile(values, QUANTILES) if len(values) else [0.0] * len(QUANTILES)
    novelty = {
        "threshold": threshold_of(values),
        "measured": len(values),
        "quantiles": {str(q): float(v) for q, v in zip(QUANTILES, quantiles, strict=True)},
    }
    pairs: Mapping[str, Any] = lifts(features, histories)
    return {**{name: lift.as_dict() for name, lift in pairs.items()}, "novelty": novelty}, values


def _spread(total: int, wanted: int) -> npt.NDArray[np.int64]:
    """At most `wanted` places of `total`, evenly spread; 0 = all."""
    count = min(total, wanted) if wanted else total
    return np.arange(count, dtype=np.int64) * total // count


def _normalised(rows: npt.NDArray[Any]) -> Features:
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: Features = (wide / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit
