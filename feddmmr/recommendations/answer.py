"""What is recommended after a history, by title, with everything that is known about it."""

import sys
from pathlib import Path
from typing import Any

from client_app.data.dataset import Dataset, open_dataset
from feddmmr.recommendations.adviser import Adviser, rank_of, recommend, usable
from feddmmr.recommendations.titles import Catalogue
from feddmmr.runs.data import differences, need_data, require_same
from feddmmr.runs.read import Run


def data_for(run: Run, home: Path, folder: Path | None) -> Dataset:
    """The run's dataset, or a part of it: a site that hosts some of the users may ask as well."""
    if folder is None:
        return need_data(run, home, None)
    dataset = open_dataset(folder.expanduser().resolve())
    other = differences(run, dataset)
    same = dataset.catalogue_sha256 == run.data["dataset"]["catalogue_sha256"]
    if other == ["dataset"] and same:
        print("note: other users than the run's, with the same catalogue", file=sys.stderr)
    else:
        require_same(run, dataset)
    return dataset


def answered(
    adviser: Adviser,
    catalogue: Catalogue,
    items: list[int],
    top: int,
    *,
    hidden: int = 0,
    seen: bool = False,
) -> dict[str, Any]:
    """The best ``top`` items after ``items`` (indices, oldest first), with reasons.

    Items of the history come only if ``seen``. A ``hidden`` item (0 = none) is told its rank.
    """
    history, cold = usable(adviser.dataset, items)
    for item in cold:
        print(f"note: cold, so no input: {catalogue.show(item)}", file=sys.stderr)
    mixture, past = adviser.model.mixture, adviser.after(history)
    met = [] if seen else items
    answer: dict[str, Any] = {
        "run": adviser.run.name,
        "stage": adviser.number,
        "round": adviser.record["best_round"],
        "gate": float(mixture.gate.detach()) if mixture else None,
        "history": [catalogue.show(item) for item in history],
        "remembered": past.remembered,
        "recommendations": [
            _named(rank, found, adviser.dataset, catalogue)
            for rank, found in enumerate(recommend(adviser, past, top, met), 1)
        ],
    }
    if not answer["recommendations"]:
        candidates = int(past.scored.scores.isfinite().sum())
        answer["note"] = (
            f"nothing to recommend: the user has met all {candidates} items that this stage can "
            "score; --seen lists them"
        )
    if hidden:
        rank = rank_of(past, hidden)
        answer["hidden"] = {"title": catalogue.show(hidden), "rank": rank}
    return answer


def _named(
    rank: int, found: dict[str, Any], dataset: Dataset, catalogue: Catalogue
) -> dict[str, Any]:
    """A recommendation with titles for item indices."""
    item, reasons = found.pop("item"), found.pop("reasons")
    names = {"rank": rank, "item_id": catalogue.ids[item], "title": catalogue.show(item)}
    because = [
        {"title": catalogue.show(one), "by": modality, "adds": value}
        for modality, one, value in reasons
    ]
    return {**names, "cold": bool(dataset.cold[item]), **found, "because": because}
