"""Server and sites of secure, noised sums are killed by SIGKILL in every step of a round."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from client_app.data.dataset import Dataset
from tests.conftest import SMALL
from tests.support.outcomes import assert_same
from tests.support.paths import ROOT
from tests.support.secure_noise import PRIVATE

# Process after process goes on with one run, each until it calls a function of a file for the n-th
# time and kills itself: "call" as it begins, "return" as it ends. A round is of 3 nodes.
KILLS = [
    ("call", "client_app/secure.py", "_keep", 2),  # the second site has a key that nobody knows
    ("call", "client_app/secure.py", "_keep", 3 + 2),  # masked, and not written down
    ("return", "client_app/secure.py", "_keep", 3 + 2),  # written down, and not sent
    ("call", "shared_model/files.py", "_sync_folder", 2),  # of the secrets of stage and sites
    ("return", "server_app/rounds/secure.py", "attempt", 1),  # all vectors are there
    ("call", "server_app/privacy/releases.py", "charge", 1),
    ("return", "server_app/rounds/loop.py", "_charge", 1),
    ("return", "client_app/secure.py", "reveal", 2),  # one gave its shares, the other's are lost
    ("return", "server_app/rounds/secure.py", "open", 1),
    ("call", "server_app/rounds/loop.py", "_save_last", 1),
    ("call", "server_app/record/manifest.py", "remove_unnamed_checkpoints", 1),  # round 1 is saved
    ("return", "server_app/rounds/secure.py", "open", 1),
    ("return", "server_app/rounds/secure.py", "open", 2),  # of round 3
    ("call", "client_app/secure.py", "forget", 2),  # the stage is complete: nothing goes on
]

DRIVER = """
import dataclasses, hashlib, json, os, signal, sys
import dp_accounting.pld  # before the forks: it takes seconds
import server_app.privacy.ledger, shared_model.protocol.gaussian
from feddmmr.launch.in_process import run_in_process
from shared_model.secure import opening, site
same = lambda: bytes(range(32))  # so that runs compare
server_app.privacy.ledger.draw_secret = shared_model.protocol.gaussian.draw_secret = same
whole, cut, kills, log = *map(json.loads, sys.argv[1:4]), sys.argv[4]

def told(kind, *what):
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (json.dumps([kind, *what]) + "\\n").encode())
    os.close(file)

def masking(session, identity, use, keys, words, mask=site.mask):
    found = mask(session, identity, use, keys, words)
    told("mask", identity.site, use.digest().hex(), use.session, use.number)
    return found

def summing(use, came, lost, given, opened=opening.opened_sum):
    words = opened(use, came, lost, given)
    told("sum", use.session, use.round, sorted(came), hashlib.sha256(words).hexdigest())
    return words

def run(settings, kill):
    left = kill[3] if kill else 0
    def count(frame, event, _):
        nonlocal left
        code = frame.f_code
        if event == kill[0] and code.co_name == kill[2] and code.co_filename.endswith(kill[1]):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count if kill else None)
    run_in_process(3, **settings)

def forked(settings, kill):
    pid = os.fork()
    if not pid:
        run(settings, kill)
        os._exit(0)
    return -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

codes = [forked(whole, None)]
site.mask, opening.opened_sum = masking, summing
codes += [forked(cut, kill) for kill in (*kills, None)]
print(json.dumps(codes))
"""


@pytest.mark.slow
def test_sigkill_in_every_step_costs_nothing_and_uses_nothing_twice(
    tmp_path: Path, small_dataset: Dataset
) -> None:
    """No mask serves two vectors, and one sum of a round is all that ever opens."""
    given: dict[str, Any] = {**SMALL, **PRIVATE, "stage": 1, "evaluate_every": 3}
    given |= {"dataset": str(small_dataset.folder), "evaluate_users": 5}
    whole, cut, log = tmp_path / "whole", tmp_path / "cut", tmp_path / "log"
    homes = [json.dumps(given | {"home": str(home)}) for home in (whole, cut)]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *homes, json.dumps(KILLS), str(log)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, *[int(signal.SIGKILL)] * len(KILLS), 0], done.stdout + done.stderr
    assert_same(cut, whole)
    seen = [json.loads(line) for line in log.read_text().splitlines()]
    masks = [tuple(what) for kind, *what in seen if kind == "mask"]
    assert len({(site, use) for site, use, *_ in masks}) == len(masks)
    sums = {tuple(map(str, what)) for kind, _, *what in seen if kind == "sum"}
    assert len(sums) == 3 < len([kind for kind, *_ in seen if kind == "sum"])
    # docs/security.md: keys of a session that nobody ends stay until the next one.
    assert [len(list((home / "secure").iterdir())) for home in (whole, cut)] == [0, 2]
    assert len([path for path in (cut / "noise").iterdir() if path.suffix == ".secret"]) == 3
