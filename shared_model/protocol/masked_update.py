"""A node's summed update as integers that can be masked, and their sum as an update again."""

import numpy as np
import torch

from shared_model.errors import NodeError
from shared_model.model.recommender import Arrays
from shared_model.protocol.plan import LocalUpdate
from shared_model.secure.encoding import decoded, encoded, scale_for
from shared_model.secure.masks import Words

ROUNDING = 1e-3  # of float32 sums over a node's users


def update_scale(clip_norm: float, users: int, sites: int) -> float:
    """By what an update's numbers are multiplied: all users of all sites, each clipped, fit."""
    return scale_for(users * clip_norm * (1 + ROUNDING), sites)


def length_of(arrays: Arrays) -> int:
    """How many words an update of these arrays has: one a number, and one for the participants."""
    return sum(value.numel() for value in arrays.values()) + 1


def packed(update: LocalUpdate, clip_norm: float, scale: float) -> Words:
    """The update's arrays, by name, and its participants: integers [D]. Nothing else is in it.

    ``NodeError`` if a number is more than its participants can make it, each of them clipped.
    """
    flat = [update.arrays[name].cpu().reshape(-1).numpy() for name in sorted(update.arrays)]
    most = update.participants * clip_norm * (1 + ROUNDING)
    words = encoded(np.concatenate(flat), scale, most)
    return np.append(words, np.uint32(update.participants))


def unpacked(words: Words, like: Arrays, scale: float) -> LocalUpdate:
    """The sum of such integers [D] as an update with arrays shaped ``like`` these, float64.

    Its weight is the number of participants. ``NodeError`` if it cannot be a sum of updates: that
    there are more participants than 2^31, say, which only wrong masks make.
    """
    participants = int(words[-1:].view(np.int32)[0])
    if participants < 0:
        raise NodeError("a sum of masked updates counts less than nobody", got=str(participants))
    numbers, arrays, at = torch.from_numpy(decoded(words[:-1], scale)), {}, 0
    for name in sorted(like):
        shape = like[name].shape
        arrays[name] = numbers[at : at + shape.numel()].reshape(shape)
        at += shape.numel()
    return LocalUpdate(arrays, float(participants), 0.0, 0, participants)
