"""The audit of a finished run: each attack undefended, clipped, and clipped and noised.

Every figure is a function of the run, its data and its seed, so an audit repeats.
"""

from typing import Any

from feddmmr.audit.defences import DEFENCES, Privacy, overrides
from feddmmr.audit.items import items_attack
from feddmmr.audit.membership import membership_attack
from feddmmr.audit.promotion import promotion_attack
from feddmmr.audit.run import AuditedRun
from shared_model.errors import ConfigError
from shared_model.fingerprint import app_sha256

ATTACKS = ("items", "membership", "promotion")


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
    rows: list[dict[str, Any]] = []
    if "items" in attacks:
        rows += items_attack(run, privacy, users)
    if "membership" in attacks:
        rows += membership_attack(run, keys)
    if "promotion" in attacks:
        rows += promotion_attack(run, keys, rounds)
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
    if attacks != ("items",):  # the others have trained the twins
        document["hr@10"] = {name: run.twin(name, keys[name]).hit_rate for name in DEFENCES}
    return document
