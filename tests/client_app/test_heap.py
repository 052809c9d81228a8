"""Free memory in pieces goes back to the machine."""

import ctypes
from pathlib import Path

import pytest

from client_app.heap import give_back

_PIECE, _PIECES = 2**16, 800  # 50 MB, each too small for a mapping of its own


def resident() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])


def test_what_lies_free_between_used_pieces_is_given_back() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim") or not Path("/proc/self/status").exists():
        pytest.skip("needs GNU's C library on Linux")
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pieces = [libc.malloc(_PIECE) for _ in range(_PIECES)]
    for piece in pieces:
        ctypes.memset(piece, 1, _PIECE)
    for piece in pieces[:-1]:  # the last one keeps the heap from shrinking by itself
        libc.free(piece)
    before = resident()
    give_back()
    assert before - resident() > _PIECE * _PIECES // 2
    libc.free(pieces[-1])
