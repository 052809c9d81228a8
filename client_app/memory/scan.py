"""The long-term memories of many users on a GPU: one program a user walks its history.

The rules and every decision are ``shared_model.memory.long_term``'s; tests compare what is held.
Products and thresholds are exact there, so both decide alike to the bit. Triton comes with torch's
builds for CUDA; without it, or without a compiler, memories are simulated on the processor.

Letters: B users, N interactions, M slots.
"""

import triton
import triton.language as tl

_FOREVER = tl.constexpr(2**31 - 1)


@triton.jit
def _oldest(refreshed, among):
    """When the one of some slots [M] was refreshed that was so first."""
    return tl.min(tl.where(among, refreshed, _FOREVER), 0)


@triton.jit
def _least(utility, filled):
    """The slots [M] with the least utility."""
    among = tl.where(filled, utility, float("inf"))
    return filled & (among == tl.min(among, 0))


@triton.jit
def scan(
    places,  # int32 [interactions] column of each interaction in its user's table
    starts,  # int64 [B] of each user in places, and in what is written
    counts,  # int32 [B] interactions to decide
    tables,  # int64 [B] where each user's table begins in cosines
    cosines,  # float32, rows of `stride`
    surprising,  # uint8 [interactions]
    frequent,  # float64, a slot's utility by its frequency
    recent,  # float64, and by its age
    thresholds,  # float64 [2]: novelty, duplicate
    kept,  # int32 [interactions] whose item the slot holds
    until,  # int32 [interactions], as in Lives
    written,  # uint8 [interactions]
    stride,
    slots,
    width: tl.constexpr,  # a power of two, at least ``slots``
):
    """Decide about a user's interactions in turn."""
    user = tl.program_id(0)
    start = tl.load(starts + user)
    count = tl.load(counts + user)
    table = cosines + tl.load(tables + user)
    novel = tl.load(thresholds)
    duplicate = tl.load(thresholds + 1)
    lane = tl.arange(0, width)
    column = tl.zeros([width], tl.int32)  # of the item that a slot holds
    origin = tl.zeros([width], tl.int32)  # the interaction that it came from
    refreshed = tl.zeros([width], tl.int32)
    frequency = tl.zeros([width], tl.int32)
    size = count * 0
    for now in range(count):
        coming = tl.load(places + start + now)
        filled = lane < size
        row = table + coming.to(tl.int64) * stride + column
        similar = tl.load(row, mask=filled, other=-float("inf"))
        nearest = tl.max(similar, 0)
        near = tl.where(size == 0, -1.0, nearest.to(tl.float64))
        merges = near >= duplicate
        surprised = tl.load(surprising + start + now) != 0
        writes = ((1.0 - near >= novel) | surprised) & (near < duplicate)
        ending = size * 0 + _FOREVER  # when the slot was refreshed whose life ends now
        if merges:
            ending = _oldest(refreshed, filled & (similar == nearest))
        if writes & (size == slots):
            utility = tl.load(frequent + frequency) + tl.load(recent + (now - refreshed))
            ending = _oldest(refreshed, _least(utility, filled))
        empty = tl.where(writes & (ending == _FOREVER), size, -1)  # the slot that is filled now
        at = (filled & (refreshed == ending)) | (lane == empty)
        if ending < _FOREVER:
            tl.store(until + start + ending, now)
        holder = tl.where(merges, tl.sum(tl.where(at, origin, 0), 0), now)
        tl.store(kept + start + now, holder)
        tl.store(until + start + now, tl.where(merges | writes, _FOREVER, 0))
        tl.store(written + start + now, writes.to(tl.uint8))
        frequency = tl.where(at, tl.where(merges, frequency + 1, 1), frequency)
        refreshed = tl.where(at, now, refreshed)
        origin = tl.where(at, holder, origin)
        column = tl.where(at, tl.where(merges, column, coming), column)
        size = tl.where(empty < 0, size, size + 1)
