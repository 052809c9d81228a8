"""Randomness depends on names alone."""

import numpy as np

from shared_model.seeds import mix, participates, rng, stable_hash, uniform, user_key

KEYS = np.array([user_key(name) for name in range(20_000)], dtype=np.uint64)


def test_known_values_hold_on_every_machine() -> None:
    assert stable_hash(0, "init", "backbone.positions") == 0x1C656C6BD9F3D663
    assert user_key(42) == 0x4CA4DFF3526ED46D
    assert mix(7, np.array([1], dtype=np.uint64))[0] == 0xB3F2E391EE2AB8A6
    assert stable_hash(1) != stable_hash("1")
    assert stable_hash("a", "b") != stable_hash("ab")


def test_a_user_has_its_own_number_whoever_is_beside_it() -> None:
    together, alone = mix(7, KEYS), np.concatenate([mix(7, KEYS[i : i + 1]) for i in range(50)])
    assert (together[:50] == alone).all()
    assert len(np.unique(together)) == len(KEYS)


def test_uniform_is_uniform_and_seeds_are_independent() -> None:
    first, second = uniform(1, KEYS), uniform(2, KEYS)
    histogram = np.histogram(first, bins=20, range=(0, 1))[0]
    assert abs(histogram - 1000).max() < 150
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_participation_is_poisson_by_user_and_round() -> None:
    rounds = np.stack([participates(0, 1, r, 0.1, KEYS) for r in range(30)])
    assert abs(rounds.mean() - 0.1) < 0.002
    assert abs(rounds.sum(1).std() - np.sqrt(20_000 * 0.1 * 0.9)) < 20  # not a fixed-size sample
    assert (rounds[3] == participates(0, 1, 3, 0.1, KEYS)).all()
    assert (rounds[3] != participates(0, 2, 3, 0.1, KEYS)).any()
    assert participates(0, 1, 3, 1.0, KEYS).all()


def test_generators_repeat() -> None:
    assert (rng("a", 1).random(5) == rng("a", 1).random(5)).all()
    assert (rng("a", 1).random(5) != rng("a", 2).random(5)).all()
