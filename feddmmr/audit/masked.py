"""Attack 1 on secure sums: what the server, and sites that help it, make of one site's message.

The victim's site hosts one user. It and nine others run the protocol itself; the attacker takes
off the masks that it knows, and scores what is left as if it were the update.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from feddmmr.audit.defences import CLIPPING, Privacy
from feddmmr.audit.items import TABLE, attacked_order, by_row, direction
from feddmmr.audit.run import AuditedRun
from feddmmr.audit.scores import auc
from feddmmr.audit.updates import Attacker
from shared_model.errors import DataError
from shared_model.model.recommender import Arrays
from shared_model.protocol.masked_update import packed, unpacked, update_scale
from shared_model.protocol.plan import LocalUpdate
from shared_model.secure import site
from shared_model.secure.identity import drawn_identity
from shared_model.secure.masks import Words, add_mask
from shared_model.secure.use import Use, least_threshold

SITES = 10
MASKED = "secure"  # what the progress calls it
BARE, MESSAGE, SUM = "one site, bare", "one site's message", f"sum of {SITES} sites"
COLLUDING = f"{MESSAGE}, {least_threshold(SITES) - 1} sites collude"
LOST = {True: f"{MESSAGE}, said to be lost", False: f"{MESSAGE}, said to be lost (curious)"}
VIEWS = (BARE, MESSAGE, COLLUDING, *LOST.values(), SUM)


def masked_attack(run: AuditedRun, privacy: Privacy, users: int) -> list[dict[str, Any]]:
    """A row a view of the first round's messages: AUC of the items of one user, in the mean over
    ``users`` victims, by the better of both scores of a row."""
    if run.dataset.num_users < SITES:
        raise DataError(
            "too few users for a site each", expected=f"{SITES}", where="--attack secure"
        )
    model = run.model()
    attacker = Attacker(run.dataset, run.settings, privacy, run.noise_key, model, (TABLE,))
    score, order = by_row(attacker, direction(attacker)), attacked_order(run)
    plan = replace(attacker.plan("uniform"), clip_norm=privacy.clip_norm)
    at_sites: deque[LocalUpdate] = deque(maxlen=SITES)  # a user each, the victim last
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for place in range(1 - SITES, users):
        victim = order[[place]]
        at_sites.append(attacker.trained(victim, plan))
        if place < 0:
            continue
        met = attacker.met(victim)
        for view, seen in _views(at_sites, privacy.clip_norm, len(order)).items():
            for name, values in score(seen).items():
                known = auc(values, met)
                found[view, name] += [] if known is None else [known]
        run.progress.step(MASKED)
    return [
        _row(view, {name: values for (of, name), values in found.items() if of == view})
        for view in VIEWS
    ]


def expect_masked(run: AuditedRun, users: int) -> None:
    """Tell the run's progress how many users' messages will be read."""
    run.progress.expect(MASKED, "user", users)


def _row(view: str, by_score: dict[str, list[float]]) -> dict[str, Any]:
    means = {name: float(np.mean(values)) for name, values in by_score.items()}
    best = {CLIPPING: max(means.values()), "chance": 0.5, "scores": means}
    return {"attack": MASKED, "case": view, "metric": "AUC, one user", **best}


def _views(updates: Sequence[LocalUpdate], clip_norm: float, users: int) -> dict[str, Arrays]:
    """What is seen of the last of these sites' updates, in a federation of so many users."""
    scale = update_scale(clip_norm, users, SITES)
    vectors = [packed(update, clip_norm, scale) for update in updates]

    def read(words: Words) -> Arrays:
        numbers = np.append(words[:-1], np.uint32(1))  # whatever count came out
        arrays = unpacked(numbers, updates[0].arrays, scale).arrays
        return {name: value.float() for name, value in arrays.items()}

    seen = {BARE: read(vectors[-1]), SUM: read(np.sum(vectors, axis=0, dtype=np.uint32))}
    for lying, lost in LOST.items():
        masked, seeds = _message(vectors[-1], lying)
        seen |= {lost: read(_without(masked, seeds))}
        if lying:
            helpers = least_threshold(SITES) - 1
            seen |= {MESSAGE: read(masked), COLLUDING: read(_without(masked, seeds[:helpers]))}
    return seen


def _message(words: Words, lying: bool) -> tuple[Words, list[bytes]]:
    """The first site's masked vector, and the seeds that each other site shares with it."""
    identities = {name: drawn_identity(name) for name in map(str, range(SITES))}
    begun = {name: site.begin("audit", identity) for name, identity in identities.items()}
    names, keys = tuple(begun), [key for key, _ in begun.values()]
    use = Use("audit", 1, 1, names, least_threshold(SITES), lying)
    victim = names[0]
    masked, _ = site.mask(begun[victim][1], identities[victim], use, keys, words)
    seeds = [
        site.pair_seeds(begun[name][1], identities[name], use, keys)[victim] for name in names[1:]
    ]
    return masked.words, seeds


def _without(masked: Words, seeds: Sequence[bytes]) -> Words:
    """What is left of the first site's message without these masks, all of which it added."""
    words = masked.copy()
    for seed in seeds:
        add_mask(words, seed, -1)
    return words
