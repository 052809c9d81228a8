"""The audit of a finished run: each attack undefended, clipped, and clipped and noised.

Every figure is a function of the run, its data and its seed, so an audit repeats.
"""

from collections.abc import Mapping
from typing import Any

from feddmmr.audit.defences import DEFENCES, Privacy, overrides
from feddmmr.audit.items import expect_items, items_attack
from feddmmr.audit.masked import MASKED, expect_masked, masked_attack
from feddmmr.audit.membership import REFERENCE, membership_attack
from feddmmr.audit.promotion import KINDS, PROMOTION, SHARES, promotion_attack
from feddmmr.audit.run import AuditedRun, Overrides
from shared_model.errors import ConfigError
from shared_model.fingerprint import app_sha256

ATTACKS = ("items", "membership", "promotion")
TWINS = {"membership", "promotion"}  # they compare with trainings under other defences


def audit(
    run: AuditedRun, attacks: tuple[str, ...], privacy: Privacy, users: int, rounds: int
) -> dict[str, Any]:
    """The chosen attacks as one JSON document, a row a figure.

    ``users`` are those whose updates the first attack reads, ``rounds`` how long the third lasts.
    """
    if not 1 <= users <= run.dataset.num_users:
        raise ConfigError(
            "no such number of users",
            where="--users",
            expected=f"1 to {run.dataset.num_users}",
            got=str(users),
        )
    keys = overrides(run.settings, privacy)
    _expect(run, attacks, keys, users, rounds)
    rows: list[dict[str, Any]] = []
    if "items" in attacks:
        rows += items_attack(run, privacy, users)
    if "membership" in attacks:
        rows += membership_attack(run, keys)
    if "promotion" in attacks:
        rows += promotion_attack(run, keys, rounds)
    if MASKED in attacks:
        rows += masked_attack(run, privacy, users)
    document = {
        "run": run.name,
        "dataset": {"name": run.dataset.info["name"], "sha256": run.data_sha256},
        "app_sha256": app_sha256(),
        "seed": run.settings.seed,
        "clip_norm": privacy.clip_norm,
        "noise_multiplier": privacy.multiplier,
        "defences": keys,
        "rows": rows,
    }
    if TWINS & set(attacks):  # they have trained the twins
        document["hr@10"] = {name: run.twin(name, keys[name]).hit_rate for name in DEFENCES}
    return document


def _expect(
    run: AuditedRun,
    attacks: tuple[str, ...],
    keys: Mapping[str, Overrides],
    users: int,
    rounds: int,
) -> None:
    """Tell the run's progress what there is to do, so that it can say how long it takes."""
    if "items" in attacks:
        expect_items(run, users)
    if MASKED in attacks:
        expect_masked(run, users)
    if TWINS & set(attacks):
        for name in (name for name in DEFENCES if not run.is_like(keys[name])):
            run.expect_twin(name)
    if "membership" in attacks:
        run.expect_twin(REFERENCE)
    if "promotion" in attacks:
        run.progress.expect(PROMOTION, "round", len(SHARES) * len(KINDS) * len(keys) * rounds)
