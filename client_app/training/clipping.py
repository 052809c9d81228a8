"""Clipping of each user's update, and a node's share of the noise (docs/privacy.md).

Clipping is that of DP-FedAvg, McMahan et al., "Learning Differentially Private Recurrent Language
Models" (ICLR 2018), section 3: flat, over all arrays that the stage trains.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from shared_model.model.recommender import Arrays
from shared_model.protocol.gaussian import array_noise, derive
from shared_model.protocol.plan import LocalUpdate, RoundPlan


def clipped_weights(moved: Arrays, weights: Tensor, clip_norm: float) -> Tensor:
    """Weights [B] under which the users' updates ``moved`` [B, ...] have at most that L2 norm.

    An update that is not finite becomes zeros, in place: as it is, it would take the sums of all
    others on the node with it, and tell everyone that this user was there.
    """
    norms = update_norms(moved)
    broken = ~torch.isfinite(norms)
    if broken.any():
        for value in moved.values():
            value[broken] = 0.0
    factors = torch.where(broken, 0.0, clip_norm / norms.clamp(min=clip_norm))
    return weights * factors.to(weights.dtype)


def update_norms(moved: Arrays) -> Tensor:
    """The L2 norm of each user's update over all arrays [B, ...] together: float64 [B]."""
    squares = [
        torch.linalg.vector_norm(value.reshape(len(value), -1), dim=1, dtype=torch.float64) ** 2
        for value in moved.values()
    ]
    return torch.stack(squares).sum(0).sqrt()


def covered(update: LocalUpdate) -> LocalUpdate:
    """The update without loss, targets and logs: sums over users to which no noise is added."""
    return replace(update, loss=0.0, targets=0, logs={})


def with_noise(update: LocalUpdate, plan: RoundPlan, secret: bytes, users: int) -> LocalUpdate:
    """The update with the noise of a node of that many users: its share of the variance.

    A function of the node's secret and the plan's draw, which is another one in each round of each
    run. The shares of all nodes add up to ``plan.noise_std``.
    """
    std = plan.noise_std * math.sqrt(users / plan.total_users)
    key, arrays = derive(secret, "noise", plan.draw), {}
    for name, value in update.arrays.items():
        noise = array_noise(key, name, value.shape, std)
        arrays[name] = (value.cpu().double() + noise).float()
    return replace(update, arrays=arrays)
