"""One of three sites behind a slow link, or cut off: the same model, and nobody waits for ever."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sites.slow_link import ROOT, SITES, SLOW, OneSlowSite, settings, sites, trained
from feddmmr.launch.federation import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc"),
]

DEADLINE = 12.0  # seconds; a round of the others takes a few


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneSlowSite]:
    with sites(tmp_path_factory.mktemp("slow")) as federation:
        yield federation


def test_a_slow_link_changes_no_byte(running: OneSlowSite) -> None:
    plain = trained(running, "plain", 2, min_participation=1.0, evaluate_every=2)
    running.link.slow = True
    try:
        slow = trained(running, "slow", 2, min_participation=1.0, evaluate_every=2)
    finally:
        running.link.slow = False
    assert plain["best_round"] > 0  # trained arrays, not the first ones
    for told in ("sha256", "best_round", "valid", "test"):
        assert slow[told] == plain[told]
    what = ("participants", "nodes", "loss", "bytes_down", "bytes_up", "dropped")
    for before, after in zip(plain["rounds"], slow["rounds"], strict=True):
        assert [after[key] for key in what] == [before[key] for key in what]


def test_a_round_waits_for_a_site_that_is_cut_off_until_its_deadline(running: OneSlowSite) -> None:
    given = settings("late", 2, round_timeout=DEADLINE, min_participation=0.5)
    run_id = running.submit(given, ROOT)

    def rounds() -> list[dict[str, Any]]:
        return list(running.manifest("late").get("stages", {}).get("1", {}).get("rounds", []))

    eventually(lambda: rounds() or running.finished(run_id), 300)
    running.link.cut()
    began = time.monotonic()
    eventually(lambda: len(rounds()) > 1 or running.finished(run_id), 300)
    waited = time.monotonic() - began
    running.link.mend()
    assert running.wait(run_id).status == "finished:completed"
    first, late, after = rounds()
    name = f"node-{SLOW}"
    assert first["dropped"] == []
    assert [drop["node"] for drop in late["dropped"]] == [name]
    assert "no reply before the deadline" in late["dropped"][0]["reason"]
    assert late["nodes"] == SITES - 1
    assert late["participants"] > 0
    assert late["seconds"] < DEADLINE + 15
    assert waited < DEADLINE + 30
    assert (after["nodes"], after["dropped"]) == (SITES, [])
