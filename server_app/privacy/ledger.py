"""The ledger of a run: its stages' releases, their secrets, and which stage may begin or go on.

Redone stages stay charged: their records are kept as superseded.
"""

import math
from pathlib import Path

from server_app.nodes.census import Census
from server_app.privacy.accountant import Mechanism, Spending, affordable, epsilon, planned
from server_app.privacy.releases import OR_REDO, Ledger, spending
from server_app.record.artifact import remove
from server_app.record.manifest import Manifest
from server_app.record.schema import (
    AppRecord,
    Empty,
    PrivacyLedger,
    StageRecord,
    SupersededStage,
)
from shared_model.errors import ConfigError, FedDMMRError, ManifestError
from shared_model.fingerprint import app_sha256
from shared_model.protocol.config import Settings
from shared_model.protocol.gaussian import derive, draw_secret, read_secret, write_secret
from shared_model.secure.use import spread_of
from shared_model.stages import Stage

_SECRET = "noise-secret-"  # noqa: S105 (how a file's name begins)


def require_one_promise(manifest: Manifest, settings: Settings) -> None:
    """``ConfigError`` if the run's other training was noised and this is not, or the reverse, or
    had a smaller budget or another delta."""
    for record in _all_records(manifest):
        # Round 0 counts: behind it there may have been rounds that nobody saved.
        privacy, released = record["privacy"], _with_releases(record["privacy"])
        begun = bool(record["rounds"]) or released is not None
        if begun and bool(privacy) != settings.private:
            how = "with" if privacy else "without"
            raise ConfigError(
                f"this run was trained {how} noise, so all of it has to be",
                where=str(manifest.path),
                expected=f"dp-noise-multiplier {'> 0' if privacy else '= 0'}",
                got=f"{settings.dp_noise_multiplier:g}",
                todo="choose another name with run='NAME'",
            )
        if released is not None:
            _require_one_budget(released, settings, str(manifest.path))


def _require_one_budget(known: PrivacyLedger, settings: Settings, where: str) -> None:
    own = settings.dp_epsilon or math.inf
    if settings.dp_delta != known["delta"] or own > (known["budget"] or math.inf):
        most = f" and dp-epsilon={known['budget']:g} or less" if known["budget"] else ""
        raise ConfigError(
            "the run has a budget, which is that of all its stages",
            where=where,
            expected=f"dp-delta={known['delta']:g}{most}",
            got=f"dp-delta={settings.dp_delta:g} and dp-epsilon={settings.dp_epsilon:g}",
            todo="restore them, or choose another name with run='NAME'",
        )


def open_ledger(
    settings: Settings,
    manifest: Manifest,
    record: StageRecord,
    stage: Stage,
    census: Census,
    secret: bytes | None = None,
) -> Ledger | None:
    """The ledger of a stage that begins or goes on; ``None`` without differential privacy.

    A stage that has released nothing yet begins: with a secret of its own, drawn now or given, so
    that no other training ever had its noise. ``ConfigError`` if the budget has no round left,
    ``ManifestError`` if a stage that has releases would repeat the last one under other noise.
    """
    if not settings.private:
        return None
    others = [other["privacy"] for other in _all_records(manifest) if other is not record]
    before = sum(map(spending, others), Spending())
    if (released := _with_releases(record["privacy"])) is not None:
        known = _secret_to_go_on(settings, manifest, released, census)
        return Ledger(released, known, before, settings.dp_epsilon)
    rounds = _affordable_rounds(settings, stage, before, len(census.nodes))
    secret = secret or draw_secret()
    write_secret(_secret_file(manifest, _fingerprint(secret)), secret)
    redone = [old for old in manifest.data["superseded"] if old["stage"] == stage.number]
    record["app_sha256"] = app_sha256()  # what began before, if anything, told nobody
    ledger: PrivacyLedger = {
        "unit": "a user, added or removed",
        "clip_norm": settings.dp_clip_norm,
        "noise_multiplier": settings.dp_noise_multiplier,
        "noise_on": settings.dp_noise_on,
        "sampling_rate": settings.fraction_train,
        "users": int(census.dataset()["users"]),
        "nodes": _drawing(settings, census, secret),
        "made_by": made_by(manifest.data["app"]),
        "delta": settings.dp_delta,
        "budget": settings.dp_epsilon,
        "attempt": len(redone),
        "secret_sha256": _fingerprint(secret),
        "rounds": rounds,
        "releases": [],
        "epsilon": epsilon(before, settings.dp_delta),
        "epsilon_after": 0,
    }
    record["privacy"] = ledger
    return Ledger(ledger, secret, before, settings.dp_epsilon)


def can_go_on(settings: Settings, manifest: Manifest, record: StageRecord, census: Census) -> bool:
    """Whether a stage that was cut off would release its last round again as it was; with another
    secret, other nodes that draw noise, or other code, a stage can only be redone."""
    if (released := _with_releases(record["privacy"])) is None:
        return True
    try:
        _secret_to_go_on(settings, manifest, released, census)
    except FedDMMRError:
        return False
    return True


def _secret_to_go_on(
    settings: Settings, manifest: Manifest, privacy: PrivacyLedger, census: Census
) -> bytes:
    """The secret of a stage that has releases; an error says what is not as it was."""
    path = _secret_file(manifest, privacy["secret_sha256"])
    secret = read_secret(path)
    if secret is None or privacy["secret_sha256"] != _fingerprint(secret):
        raise ManifestError(
            "the noise secret of this stage is missing or was changed",
            where=str(path),
            todo=f"restore the file, {OR_REDO}",
        )
    if (nodes := _drawing(settings, census, secret)) != (known := privacy["nodes"]):
        raise ManifestError(
            "other nodes draw the noise than when the stage began",
            where=str(manifest.path),
            expected=f"{len(known)} nodes with the data of then: {', '.join(known)}",
            got=", ".join(nodes),
            todo=f"bring the same nodes back, {OR_REDO}",
        )
    if (now := made_by(manifest.data["app"])) != (then := privacy["made_by"]):
        raise ManifestError(
            "the app's code or its packages changed, so the last round could be another one",
            where=str(manifest.path),
            expected=", ".join(f"{name} {then[name]:.12}" for name in then),
            got=", ".join(f"{name} {now[name]:.12}" for name in now),
            todo=f"go on with what began the stage, {OR_REDO}",
        )
    return secret


def remove_secrets(manifest: Manifest) -> None:
    """Delete the secrets that no stage will go on with. ``ManifestError`` if that is impossible."""
    records = manifest.data["stages"].values()
    cut_off = [r["privacy"] for r in records if r["status"] in ("running", "failed")]
    named = {_secret_file(manifest, p["secret_sha256"]) for p in cut_off if "secret_sha256" in p}
    for path in set(manifest.folder.glob(f"{_SECRET}*")) - named:
        remove(path)


def _secret_file(manifest: Manifest, fingerprint: str) -> Path:
    """One for each training: that of a cut-off one is there until another is complete."""
    return manifest.folder / f"{_SECRET}{fingerprint[:12]}"


def _with_releases(privacy: PrivacyLedger | Empty) -> PrivacyLedger | None:
    """A stage's ledger, if it has released anything."""
    if "releases" not in privacy:
        return None
    return privacy if privacy["releases"] else None


def _drawing(settings: Settings, census: Census, secret: bytes) -> dict[str, str]:
    """The nodes that draw noise, each with a fingerprint of its data that tells nothing of it."""
    nodes = [] if settings.dp_noise_on == "server" else census.nodes.values()
    return {n.name: derive(secret, "node", n.name, n.history_digest).hex() for n in nodes}


def made_by(app: AppRecord) -> dict[str, str]:
    """Code and packages by which a round is what it is, to the bit, of a manifest's ``app``."""
    return {"code": app["sha256"], "python": app["python"], **app["packages"]}


def _affordable_rounds(settings: Settings, stage: Stage, before: Spending, nodes: int) -> int:
    """As many rounds as were asked for, or as the budget has room for; at least one.

    Of secure sums: if no site is lost before the last round. That fits whoever is lost.
    """
    asked = settings.num_rounds
    budget, delta = settings.dp_epsilon, settings.dp_delta
    if not budget:
        return asked
    spread = spread_of(settings.secure_threshold, nodes) if settings.shares_noise else 1.0
    rate, multiplier = settings.fraction_train, settings.dp_noise_multiplier
    last = planned(rate, multiplier, 1)
    rounds = 0
    if epsilon(before + last, delta) <= budget:
        usual = Mechanism(rate, multiplier * spread)
        rounds = 1 + affordable(usual, asked - 1, budget, delta, before + last)
    if rounds == 0:
        raise ConfigError(
            f"the privacy budget has no round of stage {stage.number} left",
            where="run-config key 'dp-epsilon'",
            expected=f"the run's total to stay within {budget:g} at delta {delta:g}",
            got=f"{epsilon(before, delta):.3f} spent by the stages before, redone ones included",
            todo="plan all stages together with `feddmmr privacy plan`",
        )
    return rounds


def _fingerprint(secret: bytes) -> str:
    return derive(secret, "fingerprint").hex()


def _all_records(manifest: Manifest) -> list[StageRecord | SupersededStage]:
    return [*manifest.data["stages"].values(), *manifest.data["superseded"]]
