"""What the deployment benchmark measures with; the deployment itself: tests/e2e."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from benchmarks.deployment import ProcessorTime, write_table

BUSY = """
import time
while time.process_time() < 1.0:
    pass
time.sleep(0.3)  # as long as it takes to be seen
"""


def test_processor_time_is_that_of_the_processes_even_after_they_ended() -> None:
    started = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"
    command = [sys.executable, "-c", started]
    with ProcessorTime() as processor:
        subprocess.run(command, check=True)
        found = processor.seconds()
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.5)"], check=True)
        later = processor.seconds()
    assert 1.0 <= found <= 1.5
    assert found <= later <= found + 0.3


def test_the_table_holds_the_histories_of_the_demo(tmp_path: Path) -> None:
    write_table(tmp_path / "demo.csv")
    table = pd.read_csv(tmp_path / "demo.csv")
    assert list(table.columns) == ["user_id", "item_id", "timestamp"]
    assert table["user_id"].nunique() > 100
    assert (table.groupby("user_id")["timestamp"].diff().dropna() == 1).all()
    assert not table.duplicated(["user_id", "item_id"]).any()
