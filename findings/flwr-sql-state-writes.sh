#!/usr/bin/env bash
# flwr 1.42.0: a SuperLink with a database (--database FILE, the local one too) writes to it whenever it is asked for a run's
# status, which it is in almost every request of a node or an app: two UPDATEs for tasks that died, in a transaction that takes
# the only write lock SQLite has. Without a file (":flwr-in-memory:") nothing is written. Seen with three nodes, TLS and small
# messages, in turns on 2 quiet cores: 1.7 to 2.5 s a round with a file, 1.1 to 1.3 s without, and 1.3 to 1.9 and 0.6 s of the
# SuperLink's processor time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet flwr==1.42.0
"$folder/env/bin/python" - "$folder/state.db" <<'PYTHON'
import sys
import time

from flwr.server.superlink.linkstate.linkstate_factory import LinkStateFactory
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import Engine, event

asked = []
event.listen(Engine, "before_cursor_execute", lambda *given: asked.append(given[2].split()[0]))
for database in (sys.argv[1], ":flwr-in-memory:"):
    state = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory(database)).state()
    state.get_run_status({1})  # whatever a first question costs
    asked.clear()
    started = time.perf_counter()
    for _ in range(200):
        state.get_run_status({1})
    each = (time.perf_counter() - started) / 200 * 1e3
    print(f"{database}: {each:.2f} ms a question, statements of 200: ", end="")
    print({word: asked.count(word) for word in sorted(set(asked))})
    if database == sys.argv[1]:
        assert asked.count("UPDATE") == 400, "a status is read without writing now"
    else:
        assert not asked, "the state in memory asks a database"
PYTHON
