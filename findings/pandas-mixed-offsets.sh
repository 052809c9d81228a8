#!/usr/bin/env bash
# pandas 2.2.3, to_datetime(format="ISO8601", utc=True): a time without a zone is UTC, unless a row before
# it has an offset: then it silently takes that offset. Seen: "2001-01-01 00:00:00" after
# "2001-01-01 02:00:00+02:00" becomes 2000-12-31 22:00 UTC, and alone 2001-01-01 00:00 UTC. So the order of
# the rows moves events by hours, and with them the last item of a leave-one-out split. pandas 3.1.1 is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pandas==2.2.3
"$folder/env/bin/python" - <<'PYTHON'
import pandas as pd

plain, offset = "2001-01-01 00:00:00", "2001-01-01 02:00:00+02:00"
read = [pd.to_datetime(rows, format="ISO8601", utc=True) for rows in ([plain], [offset, plain])]
alone, after = read[0][0], read[1][1]
print(f"alone: {alone}\nafter a row with an offset: {after}")
assert alone == pd.Timestamp("2001-01-01", tz="UTC")
assert after == pd.Timestamp("2000-12-31 22:00", tz="UTC"), "the offset is no longer taken over"
PYTHON
