"""The ledger: what a run has released under differential privacy, and what that costs.

A release is a round's noised arrays, which leave the server when they are validated or trained on,
or the nodes where they draw the noise. It is written down before: a server that dies in between has
charged for it. The same round with the same noise is the same release, bit for bit, so that a run
which resumes pays nothing twice; without other nodes it is another one. Redone stages stay charged:
their records are kept as superseded.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from server_app.nodes.census import Census
from server_app.privacy.accountant import Mechanism, Spending, affordable, epsilon
from server_app.record.artifact import remove
from server_app.record.manifest import Manifest
from server_app.record.schema import (
    AppRecord,
    Empty,
    PrivacyLedger,
    Release,
    StageRecord,
    SupersededStage,
)
from shared_model.errors import ConfigError, FedDMMRError, ManifestError, RoundError
from shared_model.fingerprint import app_sha256
from shared_model.protocol.config import Settings
from shared_model.protocol.gaussian import derive, draw_secret, read_secret, write_secret
from shared_model.stages import Stage

_SECRET = "noise-secret-"  # noqa: S105 (how a file's name begins)
_OR_REDO = "or train the stage again with redo=true, which is charged"


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


@dataclass
class Ledger:
    """The privacy of one stage in progress: its budget, and its part of the manifest."""

    record: PrivacyLedger  # the stage's ``privacy``, written in place
    secret: bytes
    before: Spending  # of all other stages of the run, superseded ones included
    budget: float  # 0 = none

    @property
    def rounds(self) -> int:
        """How many rounds the stage has, of those that were asked for."""
        return int(self.record["rounds"])

    @property
    def releases(self) -> list[Release]:
        """What the stage has released."""
        return self.record["releases"]

    def is_spent(self, round_: int) -> bool:
        """Whether another round would pass the budget. All planned rounds fit, but for those that
        had to be released twice."""
        known = {release["round"] for release in self.releases}
        if not self.budget or round_ in known or len(self.releases) == len(known):
            return False
        return self._with({"round": round_, "absent": [], "noise": ""}) > self.budget

    def absent_from(self, round_: int) -> list[str] | None:
        """Who was absent when a round was first released; ``None`` if it was not yet."""
        known = [release["absent"] for release in self.releases if release["round"] == round_]
        return known[0] if known else None

    def charge(self, release: Release) -> None:
        """Write a release down (``Noising.release``), unless it is known.

        ``RoundError`` if a round that was released already comes again, without other nodes, and
        has the same noise or would pass the budget.
        """
        if self._known(release):
            return
        round_, absent = release["round"], release["absent"]
        before = [known["absent"] for known in self.releases if known["round"] == round_]
        same_noise = release["noise"] in [known["noise"] for known in self.releases]
        if same_noise or (before and self.budget and self._with(release) > self.budget):
            why = "its noise is on that sum" if same_noise else "again would pass dp-epsilon"
            raise RoundError(
                f"this round was released before, with other nodes; {why}",
                where=f"round {round_}",
                expected=f"without {', '.join(before[0]) or 'nobody'}",
                got=f"without {', '.join(absent) or 'nobody'}",
                todo="bring the same nodes back and submit the same run again: it resumes",
            )
        self.releases.append(release)

    def came_out(self, release: Release, arrays_sha256: str) -> None:
        """Note which arrays came of a release, before they are sent to anyone.

        Sites draw other noise around numbers that differ in a bit, as a GPU may make them: then a
        round that is repeated is charged once more. ``RoundError`` if that would pass the budget.
        """
        known = self._known(release)
        if any(earlier.setdefault("arrays", arrays_sha256) == arrays_sha256 for earlier in known):
            return
        again: Release = {**release, "arrays": arrays_sha256}
        if self.budget and self._with(again) > self.budget:
            raise RoundError(
                "the round came out as another one than before; both would pass dp-epsilon",
                where=f"round {release['round']}",
                todo="submit the same run again with the nodes, processors and devices of before, "
                f"{_OR_REDO}",
            )
        self.releases.append(again)

    def _known(self, release: Release) -> list[Release]:
        """What was written down of the same sum under the same noise."""

        def what(of: Release) -> tuple[int, list[str], str]:
            return of["round"], of["absent"], of["noise"]

        return [known for known in self.releases if what(known) == what(release)]

    def tell(self, round_: int) -> float:
        """Epsilon of the run so far, this stage and those before it; it is written down, too."""
        spent = epsilon(self.before + spending(self.record), self.record["delta"])
        self.record |= {"epsilon": spent, "epsilon_after": round_}
        return spent

    def _with(self, release: Release) -> float:
        spent = spending(self.record | {"releases": [*self.releases, release]})
        return epsilon(self.before + spent, self.record["delta"])


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
    rounds = _affordable_rounds(settings, stage, before)
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
            todo=f"restore the file, {_OR_REDO}",
        )
    if (nodes := _drawing(settings, census, secret)) != (known := privacy["nodes"]):
        raise ManifestError(
            "other nodes draw the noise than when the stage began",
            where=str(manifest.path),
            expected=f"{len(known)} nodes with the data of then: {', '.join(known)}",
            got=", ".join(nodes),
            todo=f"bring the same nodes back, {_OR_REDO}",
        )
    if (now := made_by(manifest.data["app"])) != (then := privacy["made_by"]):
        raise ManifestError(
            "the app's code or its packages changed, so the last round could be another one",
            where=str(manifest.path),
            expected=", ".join(f"{name} {then[name]:.12}" for name in then),
            got=", ".join(f"{name} {now[name]:.12}" for name in now),
            todo=f"go on with what began the stage, {_OR_REDO}",
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


def spending(privacy: PrivacyLedger | Empty) -> Spending:
    """The releases of a stage's ``privacy`` record, as the accountant counts them.

    A round that was released k times, with the same users and k independent noises, tells as much
    as one with noise of 1/sqrt(k) of the standard deviation.
    """
    if "releases" not in privacy:
        return Spending()
    times = Counter(release["round"] for release in privacy["releases"])
    return Spending(
        Mechanism(privacy["sampling_rate"], privacy["noise_multiplier"] / math.sqrt(count))
        for count in times.values()
    )


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


def _affordable_rounds(settings: Settings, stage: Stage, before: Spending) -> int:
    """As many rounds as were asked for, or as the budget has room for; at least one."""
    asked = settings.num_rounds
    budget, delta = settings.dp_epsilon, settings.dp_delta
    if not budget:
        return asked
    mechanism = Mechanism(settings.fraction_train, settings.dp_noise_multiplier)
    rounds = affordable(mechanism, asked, budget, delta, before)
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
