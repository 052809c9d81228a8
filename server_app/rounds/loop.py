"""The round loop: train, validate, keep the best, stop early, test once.

``Strategy.start`` has no best checkpoint, no early stopping, no resume and no deadline policy, so
the loop over the strategy's rounds is the project's own.
"""

import time
from contextlib import closing
from typing import cast

from flwr.serverapp import Grid

from server_app.privacy.releases import Ledger
from server_app.record import report
from server_app.record.checkpoint import Stateful, load_checkpoint, save_checkpoint
from server_app.record.manifest import Manifest, Record
from server_app.record.mlflow_run import MlflowStage
from server_app.record.schema import Release, RoundRecord, StageRecord
from server_app.record.selection import selected
from server_app.record.tensorboard import Events
from server_app.rounds.exchange import Asking
from server_app.rounds.result import RoundResult
from server_app.rounds.strategy import StageStrategy
from shared_model.errors import ConfigError, RoundError
from shared_model.fingerprint import arrays_sha256
from shared_model.model.recommender import Arrays
from shared_model.protocol.metrics import Report


class StageRun:
    """One stage of one run in progress."""

    def __init__(
        self,
        grid: Grid,
        strategy: StageStrategy,
        manifest: Manifest,
        record: StageRecord,
        ledger: Ledger | None = None,
    ) -> None:
        self.strategy = strategy
        self.asking = Asking(grid, strategy)
        self.manifest = manifest
        self.record = record
        self.ledger = ledger
        self.stage = strategy.stage.number

    def run(self, initial: Arrays) -> None:
        """From the initial arrays, or from the last saved round, to the tested best checkpoint."""
        arrays, done = self._resume(initial)
        settings, where = self.strategy.settings, (self.manifest.folder, self.stage, done + 1)
        with (
            closing(Events(*where, wanted=settings.tensorboard)) as self.events,
            closing(MlflowStage(*where, self.record, settings.mlflow)) as self.tracked,
            closing(self.asking),
        ):
            self._rounds(arrays, done)
            self._complete()

    def _rounds(self, arrays: Arrays, done: int) -> None:
        """Every round that is not done yet, until the last one or patience is over."""
        if done < 0:
            started = time.monotonic()
            entry: Record = {"round": 0, "participants": 0, "loss": None, "dropped": []}
            self._validate(0, arrays, entry)
            self._finish_round(entry, started, arrays)
        for round_ in range(max(done, 0) + 1, self.strategy.num_rounds + 1):
            if self._patience_is_over():
                report.say(
                    f"stage {self.stage}: early stop, best round {self.record['best_round']}"
                )
                break
            if self.ledger and self.ledger.is_spent(round_):
                report.say(f"stage {self.stage}: the privacy budget is spent before round {round_}")
                break
            arrays = self._round(round_, arrays)

    def _resume(self, initial: Arrays) -> tuple[Arrays, int]:
        """Arrays and number of the last saved round; -1 if there is none."""
        last = self.record["last"]
        if "round" not in last:
            self.record["rounds"] = []
            return initial, -1
        done = last["round"]
        self.record["rounds"] = [e for e in self.record["rounds"] if e["round"] <= done]
        path = self.manifest.folder / last["file"]
        arrays = self._trained(load_checkpoint(path, last["sha256"], **self._beside()))
        self.strategy.optimizer.steps = last["optimizer_steps"]
        report.say(f"stage {self.stage}: resumed after round {done}")
        return arrays, done

    def _trained(self, arrays: Arrays) -> Arrays:
        """A checkpoint without the frozen groups, which it holds as the stage got them."""
        return {name: value for name, value in arrays.items() if name not in self.strategy.frozen}

    def _beside(self) -> dict[str, Stateful]:
        """What a stage that was cut off goes on with, besides its arrays."""
        return {"optimizer": self.strategy.optimizer, "guard": self.strategy.guard}

    def _round(self, round_: int, arrays: Arrays) -> Arrays:
        """One round of training, with validation and a checkpoint where they are due."""
        started = time.monotonic()
        noising = self.strategy.noising
        if noising and noising.on_nodes:  # before a node sends its noised sum: all of them will
            self._charge(noising.release(round_, ()))
        if noising and noising.in_sums and self.ledger:  # before the sum is opened
            among = self._with_the_same_noise(round_)
            result = self.asking.train(round_, arrays, among, self._charge)
            if result.release:
                self.ledger.came_out(result.release, arrays_sha256(result.arrays))
                self.manifest.save()
        else:
            result = self.asking.train(round_, arrays)
        if result.release and noising and noising.noise_on == "server":
            self._charge(result.release)  # before the new arrays are sent to anyone
        entry = _entry(round_, result)
        settings = self.strategy.settings
        spent = bool(self.ledger and self.ledger.is_spent(round_ + 1))
        last = spent or round_ == self.strategy.num_rounds
        due = last or round_ % settings.evaluate_every == 0
        if due:
            self._validate(round_, result.arrays, entry)
            if self.ledger:
                entry["epsilon"] = self.ledger.tell(round_)
        # With noise, every round: a replay may repeat the last release alone. Behind an earlier one
        # that misses another node, later rounds would put noise that is out already on another sum.
        # With secure sums, too: a replay with other nodes would tell the difference.
        bare = self.ledger is None and not settings.secure
        saved = due or not bare or round_ % settings.checkpoint_every == 0
        self._finish_round(entry, started, result.arrays if saved else None)
        return result.arrays

    def _with_the_same_noise(self, round_: int) -> list[str]:
        """The nodes of a secure sum that may be out already: its noise goes on no other sum."""
        absent = self.ledger.absent_from(round_) if self.ledger else None
        if absent is None:
            return []
        if absent:
            report.say(f"round {round_} is summed as before, without {', '.join(absent)}")
        names = [node.name for node in self.strategy.census.nodes.values()]
        return [name for name in names if name not in absent]

    def _charge(self, release: Release) -> None:
        if self.ledger:
            self.ledger.charge(release)
            self.manifest.save()

    def _validate(self, round_: int, arrays: Arrays, entry: Record) -> None:
        """Score this round's own arrays; keep them if they are the best so far."""
        result = self.asking.evaluate(round_, arrays, "valid")
        entry["valid"] = result.sums.report()
        self._require_validated(entry["valid"])
        exchange, nodes = result.exchange, self.strategy.census.nodes
        entry["nodes"] = entry.get("nodes", len(nodes) - len({d["node"] for d in exchange.dropped}))
        for name in ("bytes_down", "bytes_up"):
            entry[name] = entry.get(name, 0) + getattr(exchange, name)
        entry["dropped"] = entry["dropped"] + [
            d for d in exchange.dropped if d not in entry["dropped"]
        ]
        if not self.record["checkpoint"] or selected(entry) > self._best():
            self._keep_best(round_, arrays, entry["valid"])

    def _require_validated(self, valid: Report) -> None:
        """``ConfigError`` if the sample that is validated with has nobody in it."""
        if not valid:
            raise ConfigError(
                "nobody to validate with",
                where=f"stage {self.stage}",
                expected="a user that can be ranked",
                got=f"none at evaluate-users={self.strategy.settings.evaluate_users}",
                todo="start another run with more evaluate-users, or 0 for all",
            )

    def _best(self) -> float:
        return selected(self.record)

    def _keep_best(self, round_: int, arrays: Arrays, valid: Report) -> None:
        file, sha256 = save_checkpoint(
            self.manifest.folder,
            f"stage{self.stage}-round{round_:04d}",
            self.strategy.frozen | self.strategy.sending.seen(arrays),
        )
        self.record |= {"checkpoint": file, "sha256": sha256, "best_round": round_, "valid": valid}

    def _finish_round(self, entry: Record, started: float, save: Arrays | None) -> None:
        entry |= self.asking.presence.take_events()
        entry["seconds"] = round(time.monotonic() - started, 3)
        finished = cast(RoundRecord, entry)
        self.record["rounds"].append(finished)
        self.events.add(finished)
        self.tracked.add(finished)
        if save is not None:
            self._save_last(entry["round"], save)
        sampled = self.strategy.settings.evaluate_users > 0
        report.say(report.round_line(self.stage, self.strategy.num_rounds, finished, sampled))

    def _save_last(self, round_: int, arrays: Arrays) -> None:
        """Checkpoint first, then the manifest that names it, then the files nobody names."""
        optimizer = self.strategy.optimizer
        file, sha256 = save_checkpoint(
            self.manifest.folder,
            f"stage{self.stage}-last{round_:04d}",
            self.strategy.frozen | arrays,
            **self._beside(),
        )
        self.record["last"] = {
            "file": file,
            "sha256": sha256,
            "round": round_,
            "optimizer_steps": optimizer.steps,
        }
        self.manifest.save()
        self.manifest.remove_unnamed_checkpoints()

    def _patience_is_over(self) -> bool:
        """Whether the last ``patience`` validations brought nothing better."""
        patience = self.strategy.settings.patience
        since = [e for e in self.record["rounds"] if "valid" in e]
        worse = [e for e in since if e["round"] > self.record["best_round"]]
        return 0 < patience <= len(worse)

    def _require_participants(self) -> None:
        """``RoundError`` if no user took part in any round: what was kept is what came in."""
        if self.ledger or any(entry["participants"] for entry in self.record["rounds"]):
            return  # under differential privacy the draw is a secret, and noise has moved the model
        settings = self.strategy.settings
        raise RoundError(
            f"stage {self.stage} trained nobody",
            where=f"{self.strategy.num_rounds} rounds",
            expected="participants",
            got=f"none at fraction-train={settings.fraction_train:g} of "
            f"{self.strategy.census.dataset()['users']} users",
            todo="start another run with a larger fraction-train or more rounds",
        )

    def _complete(self) -> None:
        """Open the test split, once, on the best checkpoint."""
        best = self.record["best_round"]
        self._require_participants()
        if self.ledger:
            self.ledger.tell(self.record["rounds"][-1]["round"])
        path = self.manifest.folder / self.record["checkpoint"]
        arrays = self._trained(load_checkpoint(path, self.record["sha256"]))
        result = self.asking.evaluate(best, arrays, "test")
        self.record["test"] = result.sums.report()
        self.record["test_dropped"] = result.exchange.dropped
        self.tracked.complete(self.record)
        self.record["status"] = "complete"
        self.record["last"] = {}
        self.manifest.save()
        self.manifest.remove_unnamed_checkpoints()


def _entry(round_: int, result: RoundResult) -> Record:
    """What the manifest says of a round of training, before it is validated."""
    return {
        "round": round_,
        "participants": result.participants,
        "nodes": result.nodes,
        "loss": result.loss,
        "bytes_down": result.exchange.bytes_down,
        "bytes_up": result.exchange.bytes_up,
        "dropped": result.exchange.dropped,
        **({"clipped": result.clipped} if result.clipped else {}),
        **result.logs,
    }
