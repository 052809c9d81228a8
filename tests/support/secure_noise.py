"""Rounds and runs whose sites add their share of the noise."""

from typing import Any

from server_app.privacy.mechanism import Noising
from tests.support.secure_rounds import SECURE

STD, USERS, FRACTION = 0.1, 20, 0.6  # of the small dataset; clip norm 0.05, multiplier 2
PRIVATE: dict[str, Any] = {**SECURE, "dp_noise_multiplier": 2.0, "dp_noise_on": "secure"}
SGD: dict[str, Any] = {
    "server_optimizer": "sgd",
    "server_learning_rate": 1.0,
    "server_schedule": "constant",
}


def noising(key: bytes = b"k" * 32) -> Noising:
    return Noising(key, 0.05, STD, USERS, FRACTION, noise_on="secure", nodes=3, threshold=2)
