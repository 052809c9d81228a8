"""Updates that can be read, and are wrong all the same: too long, or the opposite of what is meant.

Both are judged between nodes, of which there have to be three. docs/faults.md measures what is
withstood, and how far honest nodes are from either.
"""

from torch import Tensor

from server_app.aggregation.robust import HARD_LIMIT, limit, scaled, times_usual
from server_app.aggregation.turning import ENOUGH, HONEST, ROUNDS, Turning
from server_app.record.schema import Clip, Drop
from server_app.rounds.replies import Answers, drop
from server_app.rounds.result import Exchange
from shared_model.model.recommender import Arrays
from shared_model.protocol.config import Settings
from shared_model.protocol.messages import NodeReport
from shared_model.protocol.plan import LocalUpdate
from shared_model.stages import TABLE, Stage


class Guard:
    """A stage's: lengths by the round, directions by a memory of rounds."""

    def __init__(self, settings: Settings, stage: Stage) -> None:
        self.stage = stage
        self.mends = settings.aggregation == "clipped"
        self.turning = Turning.begin()
        self._next: Turning | None = None  # with the updates of a round that is not over

    @property
    def state(self) -> Arrays:
        """What a checkpoint keeps of it."""
        return self.turning.arrays()

    @state.setter
    def state(self, held: Arrays) -> None:
        self.turning = Turning.of_arrays(held)

    def bounded(
        self, answers: Answers[LocalUpdate], arrays: Arrays, nodes: int
    ) -> Answers[LocalUpdate]:
        """The answers, of that many ``nodes``, without updates to ``arrays`` far beyond the norm
        limit. "clipped" also leaves out who turned the wrong way until now, and makes the others
        beyond the limit usual.

        Not only as small as the limit: who is beyond it has no claim to the room that it leaves.
        """
        usable: list[tuple[NodeReport, LocalUpdate]] = []
        dropped: list[Drop] = []
        clipped: list[Clip] = []
        seen: dict[str, LocalUpdate] = {}  # by turning: of whoever is left out for it, too
        wrong = self.turning.wrong
        norms = times_usual([update for _, update in answers.usable]).tolist()
        for (node, update), times in zip(answers.usable, norms, strict=True):
            most = limit(update.participants, self.stage.mixes)
            if times > HARD_LIMIT * most:
                reason = f"update norm {times:.3g} times the usual one, limit {most:.3g}"
                dropped.append(drop(node, reason))
                continue
            beyond = times > most and self.mends
            seen[node.name] = kept = scaled(update, 1 / times) if beyond else update
            if node.name in wrong:
                dropped.append(drop(node, _turned(wrong[node.name])))
                continue
            if beyond:
                clipped.append({"node": node.name, "factor": 1 / times})
            usable.append((node, kept))
        if self.mends and nodes >= ENOUGH:
            self._next = self.turning.after(seen, len(arrays.get(TABLE, ())))
        return Answers(usable, answers.exchange + Exchange(dropped=dropped), clipped)

    def moved(self, old: Arrays, new: Arrays, rows: Tensor | None) -> None:
        """The round is over: a server optimizer took the model from one to the other."""
        if self._next is not None:
            self.turning, self._next = self._next.moved(old, new, rows), None


def _turned(share: float) -> str:
    """Why a node that makes this ``share`` of the usual turn is left out."""
    return (
        f"its updates of {ROUNDS} rounds change with the model's way, not against it: "
        f"{share:.2g} of the usual turn, limit {HONEST:g}; is their sign right?"
    )
