"""A slow site: one of three sites behind a link of 20 Mbit/s, 80 ms and 1% loss, and without it.

    uv run python -m benchmarks.sites.slow_link --out slow_link.json

The link is a proxy between that site and the SuperLink, through which TLS passes as it is. It sees
no packets: a lost one is a pause of its connection for one more round trip, as TCP repairs it, and
that TCP sends less for a while is not emulated. Both runs are one federation's, one behind the
other; they have to end with the same bytes.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.output import one_line_errors, write_json
from client_app.data.demo import demo_dataset
from feddmmr.data.importers import split_dataset
from feddmmr.launch.access import secured
from feddmmr.launch.federation import Federation
from feddmmr.launch.federation_command import node_configs
from feddmmr.launch.flwr_cli import COMPLETED, RunError

ROOT = Path(__file__).resolve().parents[2]
SITES, SLOW = 3, 2  # how many, and which of them is behind the link
MBIT, DELAY, LOSS = 20.0, 0.08, 0.01  # Mbit/s and seconds in each direction, share of the segments
_SEGMENT, _READ, _QUEUED = 1448, 1 << 14, 64  # bytes, bytes, reads in flight of one connection
_Arrivals = asyncio.Queue[tuple[float, bytes]]


class Link:
    """Passes connections on to an address, as slowly as told; switched while it runs."""

    def __init__(self, address: str, seed: int = 0) -> None:
        self.host, _, self.port = address.partition(":")
        self.slow = False
        self._open = asyncio.Event()
        self._open.set()
        self._random = random.Random(seed)  # noqa: S311 (losses, no secret)
        self._free = {True: 0.0, False: 0.0}  # when each direction has sent all it was given
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        listening = asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(10)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Nothing passes any more; connections stay open."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def mend(self) -> None:
        """All passes again, also what waited."""
        self._loop.call_soon_threadsafe(self._open.set)

    def close(self) -> None:
        """Serve no more."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection(self.host, int(self.port))
        except OSError:  # the SuperLink is gone: so is the connection
            writer.close()
            return
        ways = [(True, reader, forth), (False, back, writer)]
        queues: list[_Arrivals] = [asyncio.Queue(_QUEUED) for _ in ways]
        await asyncio.gather(
            *(self._send(up, a, q) for (up, a, _), q in zip(ways, queues, strict=True)),
            *(self._arrive(b, q) for (_, _, b), q in zip(ways, queues, strict=True)),
        )

    async def _send(self, up: bool, reader: asyncio.StreamReader, queue: _Arrivals) -> None:
        """Say of what comes in when it arrives; an empty read is the end."""
        data, last = b"-", 0.0
        while data:
            data = b""
            with suppress(ConnectionError):  # either side may be killed
                data = await reader.read(_READ)
            last = max(last, self._arrival(up, len(data)))
            await queue.put((last, data))

    def _arrival(self, up: bool, size: int) -> float:
        now = self._loop.time()
        if not self.slow:
            return now
        self._free[up] = max(now, self._free[up]) + size * 8 / (MBIT * 1e6)
        lost = sum(self._random.random() < LOSS for _ in range(-(-size // _SEGMENT)))
        return self._free[up] + DELAY + lost * 2 * DELAY

    async def _arrive(self, writer: asyncio.StreamWriter, queue: _Arrivals) -> None:
        while True:
            arrival, data = await queue.get()
            await asyncio.sleep(max(0.0, arrival - self._loop.time()))
            await self._open.wait()
            if not data:
                writer.close()
                return
            with suppress(ConnectionError):
                writer.write(data)
                await writer.drain()


class OneSlowSite(Federation):
    """A federation whose last site reaches the SuperLink by a link."""

    link: Link

    def restart(self, number: int) -> None:
        """As any federation does."""
        self.nodes_reach = self.link.address if number == SLOW else self.address
        super().restart(number)


@contextmanager
def sites(folder: Path) -> Iterator[OneSlowSite]:
    """Three sites of the demo with TLS and keys, below a folder."""
    split_dataset(demo_dataset(folder / "demo"), folder / "parts", SITES)
    keys = folder / "keys"
    made = [str(ROOT / "docker/keys.sh"), str(keys), str(SITES)]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 (our own program)
    nodes = node_configs([folder / "parts" / f"part-{i}" for i in range(SITES)])
    running = OneSlowSite(folder / "federation", nodes, secured(keys))
    running.link = Link(running.address)
    try:
        with running:
            yield running
    finally:
        running.link.close()


def settings(run: str, rounds: int, **more: Any) -> dict[str, Any]:
    """Of a run of Stage 1 that all sites have to take part in."""
    given = {"stage": 1, "run": run, "home": "~/feddmmr", "num-rounds": rounds, "min-nodes": SITES}
    more = {key.replace("_", "-"): value for key, value in more.items()}
    return given | {"evaluate-every": 1000, "dropout": 0.0, "device": "cpu"} | more


def trained(running: OneSlowSite, run: str, rounds: int, **more: Any) -> dict[str, Any]:
    """The manifest's record of Stage 1 of a run."""
    run_id = running.submit(settings(run, rounds, **more), ROOT)
    outcome = running.wait(run_id)
    if outcome.status != COMPLETED:
        raise RunError(outcome.details, where=run)
    return dict(running.manifest(run)["stages"]["1"])


def main(words: list[str] | None = None) -> None:
    """Measure a round with and without the link; print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args(words)
    found: dict[str, Any] = {"mbit": MBIT, "delay": DELAY, "loss": LOSS}
    with tempfile.TemporaryDirectory() as folder, sites(Path(folder)) as running:
        for name in ("plain", "slow"):
            running.link.slow = name == "slow"
            record = trained(running, name, given.rounds)
            seconds = [entry["seconds"] for entry in record["rounds"][2:-1]]
            bytes_down = record["rounds"][2]["bytes_down"] // SITES
            found[name] = {"sha256": record["sha256"], "seconds": statistics.median(seconds)}
            found[name] |= {"slowest": max(seconds), "bytes": bytes_down}
            print(name, json.dumps(found[name]), flush=True)
    found["equal"] = found["plain"]["sha256"] == found["slow"]["sha256"]
    print("the same bytes" if found["equal"] else "OTHER BYTES")
    write_json(given.out, found)


if __name__ == "__main__":
    with one_line_errors():
        main()
