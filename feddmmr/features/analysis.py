"""The quality report of features: are they there, are they sound, do they tell anything?

It looks at the train part of the histories alone, since what it finds (which features to use, the
memory's threshold) are choices of training. Features and threshold come from the very functions
that a node uses.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from client_app.data.content import side_by_side, unit_rows
from client_app.data.dataset import Dataset, Ints, open_dataset
from client_app.memory.novelty import count_novelty, sample_share, sampled_rows
from feddmmr.features import rows as feature_rows
from feddmmr.features.files import FeatureFiles, read_features
from feddmmr.features.similarity import Features, Histories, lifts, near_duplicates, random_mean
from shared_model.errors import DataError
from shared_model.memory.memory import MemorySettings, threshold_of

SQUEEZED = 128  # the hidden size: what features were squeezed to before attention once
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SETTINGS = MemorySettings(novelty=0.0, surprise=float("inf"))
Report = dict[str, Any]


def analyze(path: Path, users: int) -> tuple[Report, dict[str, Ints]]:
    """The report of a dataset folder or features file, and for its picture the novelty counts.

    At most `users` users (0 = all), evenly spread over the folder's rows, tell the similarities;
    the novelty is told by the users that tell it in a run. A features file has no histories, so it
    gets the plain facts only. Raises DataError if there are no features.
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
    return report, _add_histories(report, arrays, dataset, users) if dataset else {}


def _add_histories(
    report: Report, arrays: dict[str, Features], dataset: Dataset, users: int
) -> dict[str, Ints]:
    """Add to the report what the histories tell; returns the novelty counts of each array."""
    everyone = np.arange(dataset.num_users)
    share = sample_share(dataset.num_users)
    report["histories"] = {
        "users": dataset.num_users,
        "part": "train",
        "similarity_users": len(_spread(dataset.num_users, users)),
        "novelty_users": len(sampled_rows(dataset, everyone, share)),
    }
    histories = train_histories(dataset, users)
    counts: dict[str, Ints] = {}
    for name, array in arrays.items():
        padded = np.vstack([np.zeros((1, array.shape[1]), dtype=np.float32), array])
        counts[name] = count_novelty(dataset, padded, everyone, share, SETTINGS)
        preferences = _similarities(array, histories) | {"novelty": _novelty(counts[name])}
        small = squeeze(array, SQUEEZED)
        squeezed = {"dim": small.shape[1], "method": "PCA without centring"}
        squeezed |= _similarities(small, histories)
        report["modalities"][name] |= {"preferences": preferences, "squeezed": squeezed}
    return counts


def modalities(files: FeatureFiles) -> dict[str, Features]:
    """Arrays of rows of norm 1 or 0, with "combined" if there are two: both side by side."""
    arrays = {
        # Float16 is what a node reads; other types have scales that its unit_rows is not made for.
        kind: unit_rows(array if array.dtype == np.float16 else feature_rows.unit_rows(array))
        for kind, array in sorted(files.arrays.items())
    }
    if len(arrays) > 1:
        arrays["combined"] = side_by_side(arrays["visual"], arrays["text"])
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
        norm = feature_rows.row_norms(array)
        norm = norm[norm != 0]
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
    return unit_rows(wide @ directions[:, -dim:])


def train_histories(dataset: Dataset, users: int) -> Histories:
    """Train items (all but the last two) of evenly spread users, from 0."""
    rows = _spread(dataset.num_users, users)
    items, offsets = dataset.histories(rows)
    lengths = np.diff(offsets)
    place = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
    train = place < np.repeat(lengths - 2, lengths)
    indptr = np.concatenate(([0], np.cumsum(lengths - 2)))
    return Histories(indptr, items[train].astype(np.int64) - 1)


def _similarities(features: Features, histories: Histories) -> Report:
    """Similarity of what users chose."""
    return {name: lift.as_dict() for name, lift in lifts(features, histories).items()}


def _novelty(counts: Ints) -> Report:
    """The memory's threshold, and how the novelty that memories meet is spread."""
    return {
        "threshold": threshold_of(counts),
        "measured": int(counts.sum()),
        "quantiles": {str(q): threshold_of(counts, q) for q in QUANTILES},
    }


def _spread(total: int, wanted: int) -> npt.NDArray[np.int64]:
    """At most `wanted` places of `total`, evenly spread; 0 = all."""
    count = min(total, wanted) if wanted else total
    return np.arange(count, dtype=np.int64) * total // count
