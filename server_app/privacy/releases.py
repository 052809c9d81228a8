"""What a stage has released under differential privacy, and what that costs.

A release is a round's noised arrays, which leave the server when they are validated or trained on,
the nodes where they draw the noise, or a secure sum that is opened with noise in it. It is written
down before: a server that dies in between has charged for it. The same round with the same noise is
the same release, bit for bit, so that a run which resumes pays nothing twice; without other nodes
it is another one.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

from server_app.privacy.accountant import Mechanism, Spending, epsilon
from server_app.record.schema import Empty, PrivacyLedger, Release
from shared_model.errors import RoundError

OR_REDO = "or train the stage again with redo=true, which is charged"


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
        """Whether another round could pass the budget, whoever is lost. All planned rounds fit, but
        for those that had to be released twice, or by fewer sites than there are."""
        known = {release["round"] for release in self.releases}
        if not self.budget or round_ in known or self._as_planned(known):
            return False
        return self._with({"round": round_, "absent": [], "noise": ""}) > self.budget

    def _as_planned(self, known: set[int]) -> bool:
        some_lost = any("multiplier" in each and each["absent"] for each in self.releases)
        return len(self.releases) == len(known) and not some_lost

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
                f"{OR_REDO}",
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


def spending(privacy: PrivacyLedger | Empty) -> Spending:
    """The releases of a stage's ``privacy`` record, as the accountant counts them.

    Each has the stage's noise, a secure sum that of the sites which are in it.
    """
    if "releases" not in privacy:
        return Spending()
    noises: defaultdict[int, list[float]] = defaultdict(list)
    for release in privacy["releases"]:
        noises[release["round"]].append(release.get("multiplier", privacy["noise_multiplier"]))
    rate = privacy["sampling_rate"]
    return Spending(Mechanism(rate, _together(of_round)) for of_round in noises.values())


def _together(multipliers: list[float]) -> float:
    """The noise of one release that tells as much as these of the same sum, each with noise of its
    own: 1/sqrt(k) of the standard deviation, where there are k with the same."""
    least = min(multipliers)
    return least / math.sqrt(sum((least / each) ** 2 for each in multipliers))
