"""A node's summed update as integers that can be masked, and their sum as an update again."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from shared_model.errors import NodeError
from shared_model.model.recommender import Arrays
from shared_model.protocol.gaussian import derive
from shared_model.protocol.plan import LocalUpdate
from shared_model.secure.encoding import decoded, encoded, scale_for
from shared_model.secure.masks import Words
from shared_model.secure.noise import TAIL, Noise

ROUNDING = 1e-3  # of float32 sums over a node's users


@dataclass(frozen=True)
class SiteNoise:
    """What a site adds of the noise on one vector: its share (``noise.share_of``), and by what."""

    share: float  # std in units
    key: bytes  # a function of the site's own secret and of the round

    def of(self, values: npt.NDArray[np.float32]) -> Noise:
        """The noise of these very values.

        A round that is repeated as it was has the noise that it had. Other values never have it: a
        server that asks for a round from other arrays learns no difference.
        """
        told = hashlib.sha256(values.tobytes()).hexdigest()
        return Noise(self.share, derive(self.key, "share", repr(self.share), told))


def update_scale(clip_norm: float, users: int, sites: int, noise_std: float = 0.0) -> float:
    """By what an update's numbers are multiplied: all users of all sites, each clipped, fit.

    With noise of ``noise_std`` on the sum of all sites a number overflows once in 2^102: in no run,
    that is, whose rounds have 2^60 of them together, with a probability of 2^-40 or more.
    """
    return scale_for(users * clip_norm * (1 + ROUNDING) + TAIL * noise_std, sites)


def sum_noise(std: float, sites: int, threshold: int) -> float:
    """The noise on the sum of so many sites, of which ``threshold`` have ``std`` together."""
    return std * math.sqrt(sites / threshold)


def length_of(arrays: Arrays) -> int:
    """How many words an update of these arrays has: one a number, and one for the participants."""
    return sum(value.numel() for value in arrays.values()) + 1


def packed(
    update: LocalUpdate, clip_norm: float, scale: float, noise: SiteNoise | None = None
) -> Words:
    """The update's arrays, by name, and its participants: integers [D]. Nothing else is in it.

    With a share of the ``noise`` on the arrays, none on the participants.

    ``NodeError`` if a number is more than its participants can make it, each of them clipped.
    """
    flat = [update.arrays[name].cpu().reshape(-1).numpy() for name in sorted(update.arrays)]
    most = update.participants * clip_norm * (1 + ROUNDING)
    values = np.concatenate(flat)
    words = encoded(values, scale, most, None if noise is None else noise.of(values))
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
