"""`feddmmr recommend`: the evaluation's own scores, parts that add up, titles, and refusals.

Over 300 lines on purpose: all of it asks one run, which is trained once.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from client_app.data.compile import write_dataset
from client_app.data.content import open_content
from client_app.data.dataset import Dataset, input_lengths, open_dataset
from client_app.evaluation import evaluate
from client_app.memory.cache import Recall, memory_settings
from feddmmr.launch.in_process import run_in_process
from feddmmr.recommendations.adviser import Adviser, rank_of, recommend
from feddmmr.recommendations.parts import PARTS, parts_of
from feddmmr.recommendations.titles import Catalogue, row_of_user
from feddmmr.runs.data import differences
from feddmmr.runs.read import Run, read_run
from shared_model.errors import ConfigError
from shared_model.model.mixture import Candidates, Memories, Mixture
from shared_model.stages import STAGES
from tests.conftest import MakeDataset
from tests.support.naive_mixture import HEADS, D, S, V, random_world
from tests.support.runs_command import SHORT, Feddmmr, manifest
from tests.support.staged import write_mixed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Dataset]:
    """All stages, with learning rates that move gate, router and familiarity away from 0."""
    folder = tmp_path_factory.mktemp("recommend")
    home, dataset = folder / "home", write_mixed(folder / "dataset")
    given = {"home": str(home), "dataset": str(dataset), "server_learning_rate": 0.03}
    run_in_process(2, **(SHORT | given))
    return read_run(home, "default"), open_dataset(dataset)


def history_of(dataset: Dataset, row: int) -> np.ndarray:
    """A user's test input."""
    return dataset.items[dataset.indptr[row] : dataset.indptr[row + 1] - 1].astype(np.int64)


@pytest.mark.parametrize("stage", STAGES)
def test_scores_are_the_evaluations(
    trained: tuple[Run, Dataset], monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """Those of a whole batch of users, to float32: all that are not below the target's, which is
    worked out. And the ranks are the manifest's figures."""
    run, dataset = trained
    adviser, seen = Adviser(run, dataset, stage), []
    ranks = evaluate.protocol_ranks

    def watched(scores: Any, *others: Any) -> Any:
        seen.append(scores.clone())
        return ranks(scores, *others)

    monkeypatch.setattr(evaluate, "protocol_ranks", watched)
    rows, mixing = np.arange(dataset.num_users), None
    config, record = adviser.record["config"], adviser.record
    if adviser.content is not None:
        sizes = (config["memory_short_term"], config["memory_long_term"])
        novelty, surprise = record["memory_novelty"], config["memory_surprise"]
        settings = memory_settings(dataset, *sizes, novelty, surprise)
        mixing = settings, Recall(dataset, open_content(dataset, "both"))
    evaluate.evaluate_users(adviser.model, dataset, rows, "test", 0, mixing)
    everyone = seen[0 if mixing is None else 1]  # the first of a mixture are those "as-cold"
    order = np.lexsort((dataset.user_keys, input_lengths(dataset, rows, "test")))
    found = []
    for place, row in enumerate(order):
        history = history_of(dataset, row)
        past = adviser.after(history)
        scores = past.scored.scores
        assert torch.isfinite(scores).sum() == dataset.num_items - 4 * (stage == 1)
        target = int(dataset.items[dataset.indptr[row + 1] - 1])
        torch.testing.assert_close(scores[target], everyone[place, target], atol=1e-5, rtol=1e-5)
        ahead = scores[1:] >= scores[target], everyone[place, 1:] >= everyone[place, target]
        assert torch.equal(*ahead)
        found.append(rank_of(past, target))
    told = record["test"]["all-with-cold"]["full-unseen"]
    gains = np.where(np.array(found) <= 10, 1 / np.log2(np.array(found) + 1.0), 0)
    assert told["hr@10"] == pytest.approx(np.mean(np.array(found) <= 10))
    assert told["ndcg@10"] == pytest.approx(gains.mean())


@pytest.mark.parametrize("stage", STAGES)
def test_the_parts_add_up_to_the_score(trained: tuple[Run, Dataset], stage: int) -> None:
    run, dataset = trained
    adviser = Adviser(run, dataset, stage)
    spoke = torch.zeros(len(PARTS))
    for row in range(0, dataset.num_users, 4):
        scored = adviser.after(history_of(dataset, row)).scored
        possible = torch.isfinite(scored.scores)
        torch.testing.assert_close(
            scored.shares[possible].sum(1), scored.scores[possible], atol=1e-5, rtol=1e-5
        )
        spoke += scored.shares[possible].abs().amax(0)
    assert (spoke > 1e-4).tolist() == [True, *[stage > 1] * 3]  # nothing is compared with nothing


def one_user(world: Any, user: int, place: int) -> tuple[torch.Tensor, Candidates, Memories]:
    memories = world.memories
    rows = [value[user : user + 1] for value in (memories.names, memories.visual, memories.text)]
    held = memories.held[user : user + 1, place : place + 1]
    return world.sequence[user, place], world.items, Memories(*rows, held)


@pytest.mark.parametrize("routed", [False, True])
def test_parts_of_any_mixture_add_up(routed: bool) -> None:
    """With random parameters, missing modalities, cold candidates, and memories of nothing."""
    torch.manual_seed(3)
    world = random_world(shared=True)
    mixture = Mixture(D, V, S, HEADS, routed).double()
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter)
    torch.set_default_dtype(torch.float64)
    try:
        for user in range(3):
            for place in range(2):
                state, items, memory = one_user(world, user, place)
                said = mixture(state[None, None], items, memory)
                parts = parts_of(mixture, state, items, memory, said)
                torch.testing.assert_close(parts.shares.sum(1), said.scores[0, 0])
                for column, modality in enumerate(("visual", "text"), 1):
                    share = parts.remembered[modality].sum(1) + parts.by_content[:, column - 1]
                    torch.testing.assert_close(share, parts.shares[:, column])
                cold = items.cold[0]
                ids = torch.where(cold[:, None], mixture.experts.unknown, items.ids[0])
                torch.testing.assert_close(parts.shares[:, 0], ids @ state)
                assert cold.any()
                blind = replace(items, visual=torch.zeros_like(items.visual))
                said = mixture(state[None, None], blind, memory)
                assert (parts_of(mixture, state, blind, memory, said).shares[:, 1] == 0).all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_an_item_remembers_is_what_forgetting_it_changes(
    trained: tuple[Run, Dataset],
) -> None:
    """Reasons name items of the memory, loudest first, never the candidate itself."""
    run, dataset = trained
    adviser = Adviser(run, dataset)
    named = 0
    for row in range(dataset.num_users):
        history = history_of(dataset, row)
        for found in recommend(adviser, adviser.after(history), 5, history.tolist()):
            values = [value for _, _, value in found["reasons"]]
            assert values == sorted(values, reverse=True)
            for modality, item, value in found["reasons"]:
                assert item in history
                assert item != found["item"]
                assert value > 0
                assert found["router"][modality] > 0
            named += len(values)
    assert named > 100


@pytest.mark.parametrize("stage", STAGES)
def test_led_by_is_the_part_without_which_an_item_falls_furthest(
    trained: tuple[Run, Dataset], stage: int
) -> None:
    """Each part is taken away in turn, item by item; what is new is never led by familiarity."""
    run, dataset = trained
    adviser, leaders = Adviser(run, dataset, stage), set()
    for row in range(0, dataset.num_users, 3):
        history = history_of(dataset, row)
        past = adviser.after(history)
        scored = past.scored
        rivals = set(scored.scores.isfinite().nonzero()[:, 0].tolist()) - set(history.tolist())
        for found in recommend(adviser, past, 5, history.tolist()):
            item, falls = found["item"], {}
            for place, part in enumerate(PARTS):
                left = (scored.scores - scored.shares[:, place]).tolist()
                falls[part] = sum(left[other] >= left[item] for other in rivals - {item})
            assert falls[found["led_by"]] == max(falls.values())
            leaders.add(found["led_by"])
    assert leaders == {"state"} if stage == 1 else len(leaders) > 1
    assert "familiarity" not in leaders


@pytest.mark.parametrize(("stage", "seen"), [(1, False), (3, False), (3, True)])
def test_everyone_gets_what_each_would_get_alone(
    feddmmr: Feddmmr, trained: tuple[Run, Dataset], tmp_path: Path, stage: int, seen: bool
) -> None:
    run, dataset = trained
    out = tmp_path / "recs.parquet"
    where = ("--home", run.folder.parents[1], "--dataset", dataset.folder, "--stage", stage)
    where = (*where, "--top", 6, *(["--seen"] if seen else []))
    code, said, err = feddmmr("recommend", *where, "--all", "--out", out)
    table = pd.read_parquet(out)
    assert (code, said, err) == (0, f"{out}: {len(table)} rows for {dataset.num_users} users\n", "")
    assert table["user_id"].nunique() == dataset.num_users
    assert [path.name for path in tmp_path.iterdir()] == ["recs.parquet"]
    for user in (0, 7, 23):
        alone = json.loads(feddmmr("recommend", *where, "--user", user, "--json")[1])
        own = table[table["user_id"] == user]
        for name in ("rank", "title", "cold"):
            assert own[name].tolist() == [one[name] for one in alone["recommendations"]]
        assert own["item_id"].astype(str).tolist() == [
            one["item_id"] for one in alone["recommendations"]
        ]
        scores = [one["score"] for one in alone["recommendations"]]
        np.testing.assert_allclose(own["score"], scores, atol=1e-5)


def test_a_table_of_everyone_is_whole_or_as_it_was(
    feddmmr: Feddmmr, trained: tuple[Run, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, dataset = trained
    out = tmp_path / "recs.parquet"
    out.write_bytes(b"older")
    where = ("--home", run.folder.parents[1], "--dataset", dataset.folder, "--all", "--out", out)

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Adviser, "scores", fails)
    code, _, err = feddmmr("recommend", *where)
    assert (code, err.count("\n"), "No space left" in err) == (1, 1, True)
    assert out.read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["recs.parquet"]


def test_the_table_fits_80_columns(feddmmr: Feddmmr, trained: tuple[Run, Dataset]) -> None:
    run, dataset = trained
    where = ("--home", run.folder.parents[1], "--dataset", dataset.folder, "--user", 7, "--top", 5)
    os.environ["COLUMNS"] = "80"  # put back with the fixture
    for options in ([], ["--seen"], ["--stage", 1]):
        code, out, _ = feddmmr("recommend", *where, *options)
        assert (code, max(map(len, out.splitlines())) <= 80) == (0, True), out
        assert "…" not in out


def test_the_command_recommends_with_reasons(
    feddmmr: Feddmmr,
    trained: tuple[Run, Dataset],
) -> None:
    run, dataset = trained
    where = ("--home", run.folder.parents[1], "--dataset", dataset.folder)
    code, out, err = feddmmr("recommend", *where, "--user", 7, "--json", "--top", 40)
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert (answer["run"], answer["stage"]) == ("default", 3)
    row = row_of_user(dataset, "7")
    history = dataset.items[dataset.indptr[row] : dataset.indptr[row + 1]]
    assert answer["history"] == [f"item {item}" for item in history]
    listed = answer["recommendations"]
    assert [one["rank"] for one in listed] == list(range(1, 40 - len(history) + 1))
    assert not {one["item_id"] for one in listed} & set(map(str, history))
    assert sum(one["cold"] for one in listed) == 4
    scores = [one["score"] for one in listed]
    assert scores == sorted(scores, reverse=True)
    for one in listed:
        assert sum(one["parts"].values()) == pytest.approx(one["score"], abs=1e-5)
        assert one["led_by"] in PARTS
    titles = "; ".join(f"item {item}" for item in history)
    assert (
        json.loads(feddmmr("recommend", *where, "--history", titles, "--json", "--top", 40)[1])
        == answer
    )
    code, out, _ = feddmmr("recommend", *where, "--user", 7, "--hide-last", "--seen", "--top", 3)
    assert code == 0
    past = Adviser(run, dataset).after(history[:-1].astype(np.int64))
    rank = rank_of(past, int(history[-1]))
    assert f"hidden: item {history[-1]}, rank {rank}" in out
    code, out, _ = feddmmr("recommend", *where, "--user", 7, "--stage", 1, "--json", "--top", 40)
    assert not any(one["cold"] for one in json.loads(out)["recommendations"])
    seen = json.loads(feddmmr("recommend", *where, "--user", 7, "--seen", "--json", "--top", 99)[1])
    assert len(seen["recommendations"]) == 40


def test_a_history_is_remembered_once_however_much_is_listed(
    feddmmr: Feddmmr,
    trained: tuple[Run, Dataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the reasons of each item are those of a memory that was made for it alone."""
    run, dataset = trained
    made, memories = [], Recall.memories

    def counted(self: Recall, *given: Any) -> Any:
        made.append(1)
        return memories(self, *given)

    monkeypatch.setattr(Recall, "memories", counted)
    where = ("--home", run.folder.parents[1], "--dataset", dataset.folder)
    code, out, _ = feddmmr("recommend", *where, "--user", 7, "--hide-last", "--json", "--top", 9)
    assert (code, len(made)) == (0, 1)
    listed = json.loads(out)["recommendations"]
    assert len(listed) == 9
    adviser, catalogue = Adviser(run, dataset), Catalogue(dataset)
    history = history_of(dataset, row_of_user(dataset, "7"))
    for one in listed:
        item = catalogue.find("#" + one["item_id"])
        reasons = adviser.reasons(adviser.after(history), item)
        told = [{"title": catalogue.show(i), "by": m, "adds": v} for m, i, v in reasons]
        assert one["because"] == told
    assert any(one["because"] for one in listed)


@pytest.mark.parametrize(("stage", "possible"), [(1, 36), (3, 40)])
def test_who_has_met_everything_is_told_so(
    feddmmr: Feddmmr,
    trained: tuple[Run, Dataset],
    stage: int,
    possible: int,
) -> None:
    """Of 40 items Stage 1 has no score for the 4 cold ones, which no stage lists again."""
    run, dataset = trained
    titles = "; ".join(f"item {item}" for item in range(1, 41))
    where = ("--home", run.folder.parents[1], "--dataset", dataset.folder, "--stage", stage)
    code, out, _ = feddmmr("recommend", *where, "--history", titles)
    told = f"nothing to recommend: the user has met all {possible} items"
    assert (code, sum(told in line for line in out.splitlines())) == (0, 1)
    code, out, _ = feddmmr("recommend", *where, "--history", titles, "--json")
    answer = json.loads(out)
    assert (code, answer["recommendations"]) == (0, [])
    assert answer["note"].startswith(told)
    code, out, _ = feddmmr("recommend", *where, "--history", titles, "--seen", "--json")
    assert "note" not in json.loads(out)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--user", "99"], "no such user.*got '99'"),
        (["--history", "item 41"], "no such title.*item 4"),
        (["--history", "#77"], "no item with this id"),
        (["--history", "item"], "40 titles fit.*and 34 more"),
        (["--history", " ; "], "an empty history"),
        (["--history", "#4"], "1 cold items"),
        ([], "whose history"),
        (["--user", "1", "--history", "item 1"], "whose history"),
        (["--history", "item 1", "--hide-last"], "whose history"),
        (["--all"], "--all --out FILE.parquet"),
        (["--all", "--user", "1", "--out", "x.parquet"], "without --history, --user"),
        (["--all", "--out", "/nonexistent/x.parquet"], "folder of --out does not exist"),
        (["--user", "1", "--out", "x.parquet"], "whose history"),
        (["--user", "1", "--run", "defualt"], "no such run.*default"),
    ],
)
def test_what_is_unclear_is_refused_in_one_line(
    feddmmr: Feddmmr,
    trained: tuple[Run, Dataset],
    options: list[str],
    named: str,
) -> None:
    run, dataset = trained
    where = ("--home", run.folder.parents[1], "--dataset", dataset.folder)
    code, out, err = feddmmr("recommend", *where, *options)
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert pd.Series([last]).str.contains(named).all(), err


def test_a_site_may_ask_for_its_users_but_not_for_another_catalogue(
    feddmmr: Feddmmr,
    trained: tuple[Run, Dataset],
    tmp_path: Path,
) -> None:
    """Of another one each index is another item, with as many items and the same features, too."""
    run, dataset = trained
    parts = tmp_path / "parts"
    assert feddmmr("data", "split", dataset.folder, parts, "--num-partitions", 2)[0] == 0
    table = pd.read_parquet(dataset.folder / "interactions.parquet")
    items = pd.read_csv(dataset.folder / "items.csv")[["item_id", "cold"]]
    features = load_file(dataset.folder / "features.safetensors")
    renamed = [each.assign(item_id=each["item_id"] + 1) for each in (table, items)]
    others = tmp_path / "others"
    write_dataset(others, *renamed, features, "others", dataset.info["encoders"])
    assert open_dataset(others).num_items == dataset.num_items
    assert differences(run, open_dataset(others)) == ["dataset"]  # the same features
    ask = ("recommend", "--home", run.folder.parents[1], "--history", "item 1; item 2", "--dataset")
    code, out, err = feddmmr(*ask, dataset.folder)
    assert (code, err) == (0, "")
    code, same, err = feddmmr(*ask, parts / "part-0")
    assert (code, same, err.count("note: other users than the run's")) == (0, out, 1)
    code, _, err = feddmmr(*ask, others)
    assert (code, "trained on other dataset" in err) == (1, True)


def test_an_unfinished_stage_and_a_damaged_checkpoint_are_refused(
    feddmmr: Feddmmr,
    trained: tuple[Run, Dataset],
    tmp_path: Path,
    demo_folder: Path,
) -> None:
    run, dataset = trained
    home = tmp_path / "home"
    shutil.copytree(run.folder.parents[1], home)
    record = manifest(home, "default")["stages"]["3"]
    path = home / "runs/default" / record["checkpoint"]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    ask = ("recommend", "--home", home, "--dataset", dataset.folder, "--user", 1)
    code, _, err = feddmmr(*ask)
    assert (code, "missing or was changed" in err) == (1, True)
    assert feddmmr(*ask, "--stage", 2)[0] == 0
    code, _, err = feddmmr(*ask[:3], "--dataset", demo_folder, "--user", 1)
    assert (code, "trained on other" in err) == (1, True)
    code, _, err = feddmmr(*ask[:3], "--user", 1)
    assert (code, "not at hand" in err) == (1, True)
    given = {"home": str(home), "dataset": str(dataset.folder), "run": "first", "stage": 1}
    run_in_process(2, **(SHORT | given))
    code, _, err = feddmmr(*ask, "--run", "first", "--stage", 2)
    assert (code, "stage 2 of this run is not complete" in err) == (1, True)
    assert feddmmr(*ask, "--run", "first")[0] == 0


def titled(make_dataset: MakeDataset, titles: list[str]) -> Catalogue:
    """A catalogue with these titles: a stand-in for a dataset that was imported with them."""
    dataset = make_dataset({1: [1, 2, 3], 2: [3, 2, 1]}, num_items=len(titles))
    table = pd.DataFrame({"item_id": range(1, len(titles) + 1), "title": titles, "cold": 0})
    table.to_csv(dataset.folder / "items.csv", index=False)
    return Catalogue(dataset)


FILMS = [
    *("Toy Story (1995)", "Toy Story 2 (1999)", "Heat (1995)", "City Heat (1984)"),
    *("Hamlet (1990)", "Hamlet (1996)", "Schindler's List (1993)", "Amélie (2001)", "Heat 2"),
    *("Godfather, The (1972)", "Godfather: Part II, The (1974)", "Bug's Life, A (1998)"),
]


@pytest.mark.parametrize(
    ("text", "item"),
    [
        *(("Toy Story (1995)", 1), ("toy story", 1), ("TOY  STORY 2", 2), ("heat", 3)),
        *(("city heat", 4), ("city", 4), ("hamlet 1996", 6), ("#5", 5), ("# 5", 5)),
        *(("schindlers list", 7), ("schindler", 7), ("amelie", 8), ("Shindler's List", 7)),
        *(("godfather", 10), ("The Godfather", 10), ("godfather part ii", 11), ("a bugs life", 12)),
        *(("Godfathr", 10), ("godfather, the (1972)", 10)),
    ],
)
def test_titles_are_found(make_dataset: MakeDataset, text: str, item: int) -> None:
    assert titled(make_dataset, FILMS).find(text) == item


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hamlet", "2 titles fit.*1990.*1996"),
        ("toy", "2 titles fit.*Toy Story.*Toy Story 2"),
        ("toi stori", "no such title.*Toy Story"),
        ("schindlers list 2", "no such title.*Schindler"),
        ("Xyzzy 9", "no such title.*items.csv"),
        ("?", "no such title"),
        ("#15", "no item with this id"),
    ],
)
def test_titles_that_are_unclear_name_the_near_ones(
    make_dataset: MakeDataset, text: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        titled(make_dataset, FILMS).find(text)
