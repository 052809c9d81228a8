"""`feddmmr runs`: list, show, verify, compare and report, on runs that ended well, badly or never.

How the report looks in a browser is in test_report_page.py. Over 300 lines on purpose: all of it
reads the same few runs, which are trained once.
"""

import re
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client_app.data.dataset import open_dataset
from feddmmr.baselines.baselines import evaluate_baselines
from feddmmr.launch.in_process import run_in_process
from feddmmr.runs import page as runs_page
from feddmmr.runs import verify as runs_verify
from feddmmr.runs.compare import difference
from feddmmr.runs.plots import epsilons
from feddmmr.runs.read import Run
from feddmmr.runs.verify import Check
from server_app.record.manifest import open_manifest
from server_app.record.results import TABLE_GROUPS
from server_app.record.units import size, spoken
from server_app.rounds.loop import StageRun
from shared_model.stages import STAGES
from tests.conftest import CutError, MakeDataset
from tests.support.runs_command import (
    SHORT,
    Feddmmr,
    manifest,
)
from tests.support.staged import edit_manifest


def copied(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """The run "whole" alone, as "default", in a home that a test may damage."""
    home = tmp_path / "home"
    shutil.copytree(runs[0] / "runs/whole", home / "runs/default")
    return home


def test_list_has_every_run_and_how_far_it_came(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    home = Path(shutil.copytree(runs[0], tmp_path / "home"))
    path = home / "runs/other/manifest.json"
    path.write_bytes(path.read_bytes()[:-40])
    (home / "runs/empty").mkdir()
    code, out, _ = feddmmr("runs", "list", "--home", home)
    assert code == 0
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert set(lines) == {"whole", "other", "short", "cut", "empty"}
    tested = manifest(home, "whole")["stages"]["3"]["test"]
    for group in ("all", "cold"):
        figures = tested[group]["uniform-100"]
        assert f"{figures['hr@10']:.3f} / {figures['ndcg@10']:.3f}" in lines["whole"]
    assert "1 complete 2 failed 1/2" in lines["cut"]
    assert "unreadable manifest" in lines["other"]
    assert "this run has saved nothing yet" in lines["empty"]
    assert "other: unreadable manifest" in " ".join(out.split())
    assert "empty: this run has saved nothing yet" in " ".join(out.split())


def test_without_runs_list_says_how_to_start_one(feddmmr: Feddmmr, tmp_path: Path) -> None:
    code, out, _ = feddmmr("runs", "list", "--home", tmp_path)
    assert (code, "feddmmr run" in out) == (0, True)


@pytest.mark.parametrize("command", ["show", "verify", "report"])
@pytest.mark.parametrize("name", ["whole2", "../runs/whole", "nothing", "/tmp", ""])  # noqa: S108
def test_a_wrong_name_is_one_line_with_near_ones(
    feddmmr: Feddmmr, runs: tuple[Path, Path], command: str, name: str, tmp_path: Path
) -> None:
    out_option = ["--out", tmp_path / "out"] if command == "report" else []
    code, out, err = feddmmr("runs", command, name, "--home", runs[0], *out_option)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no such run" in err
    assert "all: feddmmr runs list" in err
    assert ("one of: whole" in err) == (name in ("whole2", "../runs/whole"))
    assert not (tmp_path / "out").exists()


def test_show_has_stages_costs_and_results(feddmmr: Feddmmr, runs: tuple[Path, Path]) -> None:
    whole = ("runs", "show", "whole", "--home", runs[0])
    code, out, _ = feddmmr(*whole)
    assert (code, "baselines: the data of this run are not at hand" in out) == (0, True)
    code, out, _ = feddmmr(*whole, "--dataset", runs[1])
    for name, found in evaluate_baselines(open_dataset(runs[1]), "test", 0).items():
        if "uniform-100" in found:
            assert re.search(rf"^ *{name} +{found['uniform-100']['hr@10']:.3f} ", out, re.M)
    code, out, _ = feddmmr(*whole, "--all")
    assert code == 0
    assert "24 users, 40 items (4 cold)" in out
    record = manifest(runs[0], "whole")["stages"]["2"]
    down = sum(entry["bytes_down"] for entry in record["rounds"])
    (line,) = [line for line in out.splitlines() if "2 complete" in line and "/2" in line]
    assert size(down) in line
    assert f"{record['test']['cold']['full']['hr@10']:.3f}" in out
    code, out, _ = feddmmr("runs", "show", "cut", "--all", "--home", runs[0])
    assert code == 0
    assert "2 failed 1/2" in out


def test_a_note_is_shown_wherever_the_run_is(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    home = copied(runs, tmp_path)
    write = ("runs", "note", "default", "--home", home)
    assert feddmmr(*write)[1] == "no note\n"
    note = "the first [red]one[/red] & <b>best</b>"
    assert feddmmr(*write, note, "--tag", "base", "--tag", "v1.2")[:2] == (
        0,
        f"#base #v1.2 {note}\n",
    )
    assert feddmmr(*write, "--tag", "other")[1] == f"#other {note}\n"
    assert f"#other {note}" in " ".join(
        feddmmr("runs", "show", "default", "--home", home)[1].split()
    )
    assert "#other" in feddmmr("runs", "list", "--home", home)[1]
    assert feddmmr("runs", "report", "default", "--home", home, "--out", tmp_path / "out")[0] == 0
    page = (tmp_path / "out/index.html").read_text()
    assert "#other the first [red]one[/red] &amp; &lt;b&gt;best&lt;/b&gt;" in page
    assert feddmmr("runs", "verify", "default", "--home", home)[0] == 0
    for wrong in (["x" * 2001], ["\x1b[31m"], ["--tag", "two words"], ["--tag", ""]):
        code, _, err = feddmmr(*write, *wrong)
        assert (code, err.count("\n")) == (1, 1)
    assert feddmmr(*write)[1] == f"#other {note}\n"
    (home / "runs/default/note.json").write_text('{"note": 3}')
    code, _, err = feddmmr("runs", "show", "default", "--home", home)
    assert (code, "unreadable note" in err) == (1, True)


def test_verify_is_content_with_what_was_saved(feddmmr: Feddmmr, runs: tuple[Path, Path]) -> None:
    for name in ("whole", "other", "short", "cut"):
        code, out, err = feddmmr("runs", "verify", name, "--home", runs[0], "--dataset", runs[1])
        assert (code, err) == (0, ""), out
        assert "WRONG" not in out
        assert str(runs[1]) in " ".join(out.split())
    code, out, _ = feddmmr("runs", "verify", "whole", "--home", runs[0])
    assert (code, "not at hand" in out) == (0, True)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("damage", ["byte", "gone", "cut"])
def test_verify_names_a_damaged_checkpoint(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path, stage: int, damage: str
) -> None:
    home = copied(runs, tmp_path)
    path = home / "runs/default" / manifest(home, "default")["stages"][str(stage)]["checkpoint"]
    content = path.read_bytes()
    changed = {"byte": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:-5]}
    path.unlink() if damage == "gone" else path.write_bytes(changed[damage])
    code, out, err = feddmmr("runs", "verify", "default", "--home", home)
    assert (code, err.count("\n")) == (1, 1)
    assert out.count("WRONG") == 1
    assert f"stage {stage}, best" in err


def test_verify_looks_again_at_a_run_that_went_on_meanwhile(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round is saved, and its predecessor's file removed, between the reading and the checks."""
    home, looked = tmp_path / "home", []
    shutil.copytree(runs[0] / "runs/cut", home / "runs/cut")
    original = runs_verify.verify_run

    def late(run: Run, *rest: Any) -> list[Check]:
        if not looked:
            cut = runs[0] / "runs/cut"
            given = {"home": str(home), "dataset": str(runs[1]), "run": "cut"}
            run_in_process(2, **(SHORT | given))
            assert (cut / run.data["stages"]["2"]["last"]["file"]).is_file()
            assert not (home / "runs/cut" / run.data["stages"]["2"]["last"]["file"]).exists()
        looked.append(run.data["stages"]["2"]["status"])
        return original(run, *rest)

    monkeypatch.setattr(runs_verify, "verify_run", late)
    code, out, err = feddmmr("runs", "verify", "cut", "--home", home)
    assert (code, err) == (0, ""), out
    assert looked == ["failed", "complete"]


@pytest.mark.parametrize(
    ("stage", "changes", "named"),
    [
        (3, {"parent_sha256": "0" * 64}, "does not start from stage 2"),
        (2, {"status": "failed"}, "stage 2 is failed"),
        (1, {"trained": ["backbone"]}, "trained groups are backbone"),
        (2, {"checkpoint": "", "sha256": ""}, "complete without a checkpoint"),
        (1, {"last": {"file": "a.safetensors", "sha256": "1" * 64, "round": 1,
                      "optimizer_steps": 1}}, "a.safetensors is gone"),
    ],
)  # fmt: skip
def test_verify_names_what_is_out_of_order_though_sealed(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path, stage: int, changes: Any, named: str
) -> None:
    home = copied(runs, tmp_path)
    edit_manifest(home, stage, **changes)
    code, _, err = feddmmr("runs", "verify", "default", "--home", home)
    assert code == 1
    assert named in err


def test_verify_refuses_an_edited_manifest_and_other_data(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path, demo_folder: Path
) -> None:
    home = copied(runs, tmp_path)
    code, _, err = feddmmr("runs", "verify", "default", "--home", home, "--dataset", demo_folder)
    assert code == 1
    assert "trained on other dataset and features" in err
    path = home / "runs/default/manifest.json"
    path.write_text(path.read_text().replace('"best_round": 2', '"best_round": 1'))
    code, _, err = feddmmr("runs", "verify", "default", "--home", home)
    assert (code, err.count("\n")) == (1, 1)
    assert "was changed after it was saved" in err
    assert "best_round" in err


def test_the_demo_is_found_by_its_fingerprint(
    feddmmr: Feddmmr, demo_folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    tiny = {"hidden_size": 8, "num_blocks": 1, "max_length": 5, "num_rounds": 1, "stage": 1}
    run_in_process(1, home=str(home), **tiny)
    (home / "demo-0").mkdir()  # of a version that this one cannot read
    (home / "demo-0" / "dataset.json").write_text("{}")
    code, out, _ = feddmmr("runs", "verify", "default", "--home", home)
    assert code == 0
    assert "demo-" in out


def test_compare_shows_figures_differences_and_settings(
    feddmmr: Feddmmr, runs: tuple[Path, Path]
) -> None:
    code, out, _ = feddmmr("runs", "compare", "whole", "other", "--home", runs[0], "--every-group")
    assert code == 0
    first, other = (manifest(runs[0], name)["stages"]["1"]["test"] for name in ("whole", "other"))
    rows = [[part.strip() for part in line.split("│")] for line in out.splitlines()]
    told = {tuple(row[1:4]): row[5] for row in rows if len(row) == 7}
    for group, protocols in first.items():
        for protocol, figures in protocols.items():
            more = difference(figures, other[group][protocol])
            assert told["1", group, protocol].endswith(f"({more})")
    assert difference({"hr@10": 0.5, "ndcg@10": 0.25}, {"hr@10": 0.25, "ndcg@10": 0.5}) == (
        "-0.250 / +0.250"
    )
    settings = out[out.index("settings that differ") :]
    assert re.findall(r"│ (\d) +│ (\S+) +│ (\S+) +│ (\S+)", settings) == [
        ("1", "dropout", "0", "0.2")
    ]
    assert "stale" not in out
    code, out, _ = feddmmr("runs", "compare", "other", "short", "--home", runs[0])
    assert "num-rounds" in out
    assert "note:" not in out


def test_compare_says_when_data_differ(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path, small_dataset: Any
) -> None:
    home = copied(runs, tmp_path)
    given = {"home": str(home), "dataset": str(small_dataset.folder), "run": "b", "stage": 1}
    run_in_process(1, **(SHORT | given | {"num_rounds": 1}))
    code, out, _ = feddmmr("runs", "compare", "default", "b", "--home", home)
    assert code == 0
    assert "note: other dataset than default's: b" in out
    assert feddmmr("runs", "compare", "default", "--home", home)[0] == 1
    assert feddmmr("runs", "compare", "b", "b", "--home", home)[0] == 1


def test_the_report_has_tables_plots_and_baselines(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    arguments = ("runs", "report", "whole", "--home", runs[0], "--dataset", runs[1], "--out", out)
    code, said, _ = feddmmr(*arguments)
    assert (code, said) == (0, f"report: {out / 'index.html'}\n")
    page = (out / "index.html").read_text()
    names = [
        "validation",
        "mixture",
        "results",
        "cold-items",
        "buckets",
        "spread",
        "loss",
        "traffic",
    ]
    assert re.findall(r'figure id="plot-([\w-]+)"', page) == names
    assert sorted(path.name for path in out.glob("*.png")) == sorted(f"{n}.png" for n in names)
    for name in names:
        pixels = np.asarray(Image.open(out / f"{name}.png").convert("RGB"))
        colourful = (pixels.max(-1).astype(int) - pixels.min(-1)) > 60
        assert colourful.mean() > 0.001, name
    assert len(re.findall(r'src="data:image/svg\+xml;base64,', page)) == len(names)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "http:" not in page
    assert "https:" not in page
    baselines = evaluate_baselines(open_dataset(runs[1]), "test", 0)
    for found in baselines.values():
        figures = found["all"]["full"]
        assert f"{figures['hr@10']:.3f} / {figures['ndcg@10']:.3f}" in page
    for number in STAGES:
        for protocols in manifest(runs[0], "whole")["stages"][str(number)]["test"].values():
            for figures in protocols.values():
                assert f"{figures['hr@10']:.3f} / {figures['ndcg@10']:.3f}" in page
    first = page
    assert feddmmr(*arguments)[0] == 0  # a report is made anew, and the same
    assert (out / "index.html").read_text() == first


def test_figures_of_a_stale_stage_are_marked(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    """They are those of a model that stands on a stage which is not there any more."""
    home = copied(runs, tmp_path)
    edit_manifest(home, 3, status="stale")
    shutil.copytree(runs[0] / "runs/whole", home / "runs/whole")
    out = feddmmr("runs", "compare", "whole", "default", "--home", home)[1]
    lines = [line for line in out.splitlines() if re.match(r"│ \d +│ \S+ +│ (full|uni)", line)]
    assert {line[2] for line in lines} == {"1", "2", "3"}
    assert all(line.count("(stale)") == (line[2] == "3") for line in lines)
    feddmmr("runs", "report", "default", "--home", home, "--out", tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert re.findall(r"<td>(Stage \d.*?)</td>", page) == ["Stage 1", "Stage 2", "Stage 3 (stale)"]


def test_a_report_that_was_cut_off_is_written_anew(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a picture of an older report, which the run does not have now, does not stay."""
    out, write, written = tmp_path / "out", runs_page.write_atomically, []

    def cut(path: Path, *rest: Any) -> None:
        if len(written) == 2:
            raise CutError
        written.append(path.name)
        write(path, *rest)

    arguments = ("runs", "report", "other", "--home", runs[0], "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(runs_page, "write_atomically", cut)
        with pytest.raises(CutError):
            feddmmr(*arguments)
    (out / "mixture.png").write_bytes(b"older")
    (out / "mine.png").write_bytes(b"mine")
    assert feddmmr(*arguments)[0] == 0
    assert (out / "mine.png").read_bytes() == b"mine"
    assert not (out / "mixture.png").exists()
    assert (out / "results.png").stat().st_size > 1000


def test_a_report_on_a_full_disk_says_what_to_do(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        arguments = ("runs", "report", "short", "--home", runs[0], "--out", tmp_path / "out")
        code, _, err = feddmmr(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, err.count("\n")) == (1, 1)
    assert "File too large; do: free disk space or choose another --out" in err


@pytest.mark.parametrize(("name", "stages"), [("other", 1), ("short", 1), ("cut", 2)])
def test_the_report_of_an_unfinished_run_says_so(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path, name: str, stages: int
) -> None:
    out = tmp_path / "report"
    assert feddmmr("runs", "report", name, "--home", runs[0], "--out", out)[0] == 0
    page = (out / "index.html").read_text()
    assert page.count('<section class="card">') == stages
    assert "Baselines are left out" in page
    assert ('class="tag failed"' in page) == (name == "cut")
    assert ('id="plot-mixture"' in page) == (name == "cut")


def test_a_run_in_its_first_rounds_has_a_report(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs, and holds its lock."""
    home, codes, save = tmp_path / "home", [], StageRun._save_last

    def saved(self: StageRun, round_: int, arrays: Any) -> None:
        save(self, round_, arrays)
        out = tmp_path / f"report-{round_}"
        codes.append(feddmmr("runs", "report", "now", "--home", home, "--out", out)[0])
        assert 'class="tag running"' in (out / "index.html").read_text()

    monkeypatch.setattr(StageRun, "_save_last", saved)
    given = {"home": str(home), "dataset": str(runs[1]), "run": "now", "stage": 1}
    run_in_process(1, **(SHORT | given))
    assert codes == [0, 0, 0]


def test_what_nodes_say_is_text_and_nothing_else(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    """In the page, in the plots and on the terminal."""
    home, out = copied(runs, tmp_path), tmp_path / "report"
    evil = "</td><script>alert(1)</script> [red]$\\frac{1}$ \x1b[31m"
    with open_manifest(home, "default") as found:
        entry = found.data["stages"]["2"]["rounds"][1]
        entry["dropped"] = [{"node": evil, "reason": evil}]
        entry["clipped"] = [{"node": "partition-1", "factor": 0.5}]
        found.save()
    assert feddmmr("runs", "report", "default", "--home", home, "--out", out)[0] == 0
    page = (out / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert 'id="plot-nodes"' in page
    assert feddmmr("runs", "show", "default", "--home", home)[0] == 0


def test_a_privacy_ledger_is_shown_and_drawn(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    home, out = tmp_path / "home", tmp_path / "report"
    private: dict[str, Any] = {"dp_clip_norm": 0.5, "dp_noise_multiplier": 2.0, "dp_epsilon": 9.0}
    private |= {"weighting": "uniform", "aggregation": "mean", "stage": 1, "home": str(home)}
    document = run_in_process(2, **(SHORT | private | {"dataset": str(runs[1])}))
    record = document["stages"]["1"]
    (one, first), (two, second) = epsilons(record)
    assert (one, two) == (1, 2)
    assert 0 < first < second == record["privacy"]["epsilon"] <= 9.0
    arguments = ("default", "--home", home)
    assert feddmmr("runs", "report", *arguments, "--dataset", runs[1], "--out", out)[0] == 0
    page = (out / "index.html").read_text()
    assert 'id="plot-privacy"' in page
    assert "epsilon after round 2" in page
    assert "1e-05" in page
    assert "delta 1e-05" in feddmmr("runs", "show", *arguments)[1]


def test_nothing_else_is_written_over(
    feddmmr: Feddmmr, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/index.html").write_text("<p>mine")
    (tmp_path / "file").write_text("mine")
    for out in ("mine", "file"):
        arguments = ("runs", "report", "whole", "--home", runs[0], "--out", tmp_path / out)
        code, _, err = feddmmr(*arguments)
        assert (code, err.count("\n"), "is no report" in err) == (1, 1, True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["index.html"]


def test_the_report_of_a_run_without_cold_items(
    feddmmr: Feddmmr, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    random = np.random.default_rng(2)
    rows = random.standard_normal((30, 8))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    histories: Any = {n: (random.permutation(30)[:12] + 1).tolist() for n in range(12)}
    dataset = make_dataset(histories, num_items=30, features={"text": rows.astype("f2")})
    home, out = tmp_path / "home", tmp_path / "report"
    given = {"home": str(home), "dataset": str(dataset.folder), "num_rounds": 1}
    run_in_process(2, **(SHORT | given))
    for command in (["verify", "default"], ["report", "default", "--out", str(out)]):
        code, _, err = feddmmr("runs", *command, "--home", home, "--dataset", dataset.folder)
        assert (code, err) == (0, "")
    page = (out / "index.html").read_text()
    assert "plot-cold-items" not in page
    assert "plot-mixture" in page


def test_sizes_and_durations_are_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 1.5e6, 2e9, 3e13)] == [
        "0 B", "999 B", "1.0 kB", "1.5 MB", "2.0 GB", "30.0 TB"
    ]  # fmt: skip
    assert [spoken(n) for n in (0.04, 119, 120, 7200, 2e5)] == [
        "0.0 s", "119.0 s", "2 min", "2 h", "2 d"
    ]  # fmt: skip


def test_show_tells_every_group_of_the_test(runs: tuple[Path, Path], feddmmr: Feddmmr) -> None:
    plain = feddmmr("runs", "show", "whole", "--home", runs[0])[1]
    code, out, _ = feddmmr("runs", "show", "whole", "--home", runs[0], "--all")
    assert code == 0
    for number in STAGES:
        for group, cells in manifest(runs[0], "whole")["stages"][str(number)]["test"].items():
            figures = [f"{cells['full'][name]:.3f}" for name in ("hr@10", "ndcg@10")]
            if group not in TABLE_GROUPS:
                figures.append(f"{cells['full']['users']:.0f}")
            rows = [line.split() for line in out.splitlines() if group in line.split()]
            assert any(set(figures) <= set(row) for row in rows), group
    assert "length-" in out
    assert "length-" not in plain
