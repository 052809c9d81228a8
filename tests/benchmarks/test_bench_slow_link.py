"""The slow link passes on what it is given, as late as it says; the sites: tests/e2e."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from benchmarks.sites.slow_link import DELAY, MBIT, Link

DATA = bytes(range(256)) * 2000  # 512 kB: 0.2 s of the link


@pytest.fixture
def link() -> Iterator[Link]:
    """Before a server that sends back all that a connection sent, once it has ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=[server], daemon=True).start()
        link = Link(f"127.0.0.1:{server.getsockname()[1]}")
        yield link
        link.close()


def answer(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(received(connection, len(DATA)))


def received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(1 << 16)):
        data += more
    return data


def seconds(link: Link, before: float = 0.0) -> float:
    """How long the data takes there and back; the link is mended after some seconds."""
    host, _, port = link.address.partition(":")
    began = time.monotonic()
    threading.Timer(before, link.mend).start()
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(DATA)
        assert received(connection, len(DATA)) == DATA
    return time.monotonic() - began


def test_a_link_that_is_not_slow_passes_all_on_at_once(link: Link) -> None:
    assert seconds(link) < 2 * DELAY + 1


def test_a_slow_link_takes_the_time_that_it_says(link: Link) -> None:
    link.slow = True
    least = 2 * (len(DATA) * 8 / (MBIT * 1e6) + DELAY)
    losses = 2 * len(DATA) / 1448 * 0.01 * 2 * DELAY  # as many as are to be expected
    assert least <= seconds(link) < least + 4 * losses + 2


def test_nothing_passes_a_link_that_is_cut(link: Link) -> None:
    link.cut()
    assert seconds(link, before=0.7) >= 0.7
