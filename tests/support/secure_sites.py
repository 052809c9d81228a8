"""Sites that aggregate securely, without nodes or messages: a use of a session, and who is lost."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from shared_model.secure import opening, site
from shared_model.secure.identity import Identity, SignedKey, drawn_identity
from shared_model.secure.masks import Words
from shared_model.secure.site import Masked, Session
from shared_model.secure.use import Use

SESSION = "5e551017"


@dataclass
class Sites:
    """Sites by name, their keys of one session, and the uses that they served."""

    threshold: int
    self_masked: bool = True
    identities: dict[str, Identity] = field(default_factory=dict)
    keys: dict[str, SignedKey] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    number: int = 0

    @classmethod
    def of(cls, count: int, threshold: int, self_masked: bool = True) -> "Sites":
        sites = cls(threshold, self_masked)
        for name in (f"site-{i:02d}" for i in range(count)):
            sites.identities[name] = drawn_identity(name)
            sites.draw(name)
        return sites

    def draw(self, name: str) -> None:
        before = self.sessions.get(name)
        self.keys[name], self.sessions[name] = site.begin(SESSION, self.identities[name], before)

    def use(self, names: Collection[str] = ()) -> Use:
        self.number += 1
        asked = tuple(sorted(names or self.identities))
        return Use(SESSION, self.number, self.number, asked, self.threshold, self.self_masked)

    def keys_of(self, use: Use) -> list[SignedKey]:
        return [self.keys[name] for name in use.sites]

    def mask(self, name: str, use: Use, words: Words) -> Masked:
        identity, keys = self.identities[name], self.keys_of(use)
        masked, self.sessions[name] = site.mask(self.sessions[name], identity, use, keys, words)
        return masked

    def reveal(
        self, name: str, use: Use, lost: Sequence[str], envelopes: Mapping[str, bytes]
    ) -> dict[str, bytes]:
        identity, keys = self.identities[name], self.keys_of(use)
        shares, self.sessions[name] = site.reveal(
            self.sessions[name], identity, use, keys, lost, envelopes
        )
        return shares

    def total(
        self,
        vectors: Mapping[str, Words],
        at_keys: Collection[str] = (),
        at_masking: Collection[str] = (),
        at_opening: Collection[str] = (),
    ) -> Words:
        """One use from its keys to its sum, with sites lost on the way."""
        use = self.use([name for name in vectors if name not in at_keys])
        came = {
            name: self.mask(name, use, vectors[name])
            for name in use.sites
            if name not in at_masking
        }
        lost = opening.lost_sites(use, came)
        helpers = [name for name in came if name not in at_opening]
        asked = [] if opening.is_open(use, lost) else helpers
        given = {
            name: self.reveal(name, use, lost, opening.envelopes_for(name, came)) for name in asked
        }
        return opening.opened_sum(use, came, lost, given)


def drawn_words(count: int, length: int, seed: int) -> list[Words]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 2**32, length, dtype=np.uint32) for _ in range(count)]
