"""The round loop: train, validate, keep the best, stop early, test once.

``Strategy.start`` has no best checkpoint, no early stopping, no resume and no deadline policy, so
the loop over the strategy's four hooks is the project's own.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from server_app import report
from server_app.checkpoint import load_checkpoint, save_checkpoint
from server_app.manifest import Manifest, Record
from server_app.strategy import StageStrategy
from shared_model import messages
from shared_model.errors import RoundError
from shared_model.metrics import MetricSums, Report
from shared_model.model import Arrays

# The validation figure that the best round maximises, summed over these groups: what is known of
# the items, and, from Stage 2 on, what their content alone tells ("as-cold").
SELECT_GROUPS, SELECT_BY = ("all", "as-cold"), ("full", "ndcg@10")


class StageRun:
    """One stage of one run in progress."""

    def __init__(
        self, grid: Grid, strategy: StageStrategy, manifest: Manifest, record: Record
    ) -> None:
        self.grid = grid
        self.strategy = strategy
        self.manifest = manifest
        self.record = record
        self.stage = strategy.stage.number

    def run(self, initial: Arrays) -> None:
        """From the initial arrays, or from the last saved round, to the tested best checkpoint."""
        arrays, done = self._resume(initial)
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
            arrays = self._round(round_, arrays)
        self._complete()

    def _resume(self, initial: Arrays) -> tuple[Arrays, int]:
        """Arrays and number of the last saved round; -1 if there is none."""
        last = self.record["last"]
        done = last.get("round", -1)
        self.record["rounds"] = [e for e in self.record["rounds"] if e["round"] <= done]
        if not last:
            return initial, done
        path = self.manifest.folder / last["file"]
        arrays = self._trained(load_checkpoint(path, last["sha256"], self.strategy.optimizer))
        self.strategy.optimizer.steps = last["optimizer_steps"]
        report.say(f"stage {self.stage}: resumed after round {done}")
        return arrays, done

    def _trained(self, arrays: Arrays) -> Arrays:
        """A checkpoint without the frozen groups, which it holds as the stage got them."""
        return {name: value for name, value in arrays.items() if name not in self.strategy.frozen}

    def _round(self, round_: int, arrays: Arrays) -> Arrays:
        """One round of training, with validation and a checkpoint where they are due."""
        started = time.monotonic()
        new, sums = self._train(round_, arrays)
        exchange = self.strategy.exchange
        entry: Record = {
            "round": round_,
            "participants": int(_scalar(sums, "participants")),
            "nodes": int(_scalar(sums, "nodes")),
            "loss": _scalar(sums, "loss") if "loss" in sums else None,
            "bytes_down": exchange.bytes_down,
            "bytes_up": exchange.bytes_up,
            "dropped": exchange.dropped,
            **self.strategy.logs,
        }
        every = self.strategy.settings.evaluate_every
        due = round_ % every == 0 or round_ == self.strategy.num_rounds
        if due:
            self._validate(round_, new, entry)
        self._finish_round(entry, started, new if due else None)
        return new

    def _train(self, round_: int, arrays: Arrays) -> tuple[Arrays, MetricRecord]:
        """One round's new arrays and sums; a round that too few nodes completed is tried again."""
        try:
            return self._try_train(round_, arrays)
        except RoundError as error:
            report.say(f"stage {self.stage}: round {round_} is tried again: {error}")
            first = self.strategy.exchange
            result = self._try_train(round_, arrays)
            self.strategy.exchange = first + self.strategy.exchange
            return result

    def _try_train(self, round_: int, arrays: Arrays) -> tuple[Arrays, MetricRecord]:
        record = messages.to_record(arrays)
        requests = self.strategy.configure_train(round_, record, ConfigRecord(), self.grid)
        new, sums = self.strategy.aggregate_train(round_, self._replies(requests))
        return (arrays if new is None else messages.from_record(new)), sums or MetricRecord()

    def _replies(self, requests: Sequence[Message]) -> list[Message]:
        """What the nodes answer until the deadline; frozen groups go to those that lack them."""
        deadline = time.monotonic() + self.strategy.settings.round_timeout
        timeout = self.strategy.settings.round_timeout
        replies = list(self.grid.send_and_receive(requests, timeout=timeout))
        again = self.strategy.lacking(requests, replies)
        if again:
            left = max(0.0, deadline - time.monotonic())
            asked = {request.metadata.dst_node_id for request in again}
            replies = [reply for reply in replies if reply.metadata.src_node_id not in asked]
            replies += self.grid.send_and_receive(again, timeout=left)
        return replies

    def _evaluate(self, round_: int, arrays: Arrays, split: Literal["valid", "test"]) -> Report:
        """Metrics over all users; if nodes fail, all are asked again, then they are left out."""
        self.strategy.split = split
        try:
            result = self._try_evaluate(round_, arrays)
        except RoundError as error:
            report.say(f"stage {self.stage}: evaluation is tried again: {error}")
        else:
            if not self.strategy.exchange.dropped:
                return result
        first = self.strategy.exchange
        result = self._try_evaluate(round_, arrays)
        self.strategy.exchange = first + self.strategy.exchange
        return result

    def _try_evaluate(self, round_: int, arrays: Arrays) -> Report:
        record: ArrayRecord = messages.to_record(arrays)
        requests = self.strategy.configure_evaluate(round_, record, ConfigRecord(), self.grid)
        replies = self._replies(requests)
        sums = self.strategy.aggregate_evaluate(round_, replies) or MetricRecord()
        return MetricSums({key: _scalar(sums, key) for key in sums}).report()

    def _validate(self, round_: int, arrays: Arrays, entry: Record) -> None:
        """Score this round's own arrays; keep them if they are the best so far."""
        entry["valid"] = self._evaluate(round_, arrays, "valid")
        entry["nodes"] = entry.get("nodes", len(self.strategy.census.nodes))
        for name in ("bytes_down", "bytes_up"):
            entry[name] = entry.get(name, 0) + getattr(self.strategy.exchange, name)
        entry["dropped"] = entry["dropped"] + self.strategy.exchange.dropped
        if not self.record["checkpoint"] or selected(entry) > self._best():
            self._keep_best(round_, arrays, entry["valid"])

    def _best(self) -> float:
        return selected(self.record)

    def _keep_best(self, round_: int, arrays: Arrays, valid: Report) -> None:
        file, sha256 = save_checkpoint(
            self.manifest.folder,
            f"stage{self.stage}-round{round_:04d}",
            self.strategy.frozen | arrays,
        )
        self.record |= {"checkpoint": file, "sha256": sha256, "best_round": round_, "valid": valid}

    def _finish_round(self, entry: Record, started: float, save: Arrays | None) -> None:
        entry["seconds"] = round(time.monotonic() - started, 3)
        self.record["rounds"].append(entry)
        report.say(report.round_line(self.stage, self.strategy.num_rounds, entry))
        if save is not None:
            self._save_last(entry["round"], save)

    def _save_last(self, round_: int, arrays: Arrays) -> None:
        """Checkpoint first, then the manifest that names it, then the files nobody names."""
        optimizer = self.strategy.optimizer
        file, sha256 = save_checkpoint(
            self.manifest.folder,
            f"stage{self.stage}-last{round_:04d}",
            self.strategy.frozen | arrays,
            optimizer,
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

    def _complete(self) -> None:
        """Open the test split, once, on the best checkpoint."""
        best = self.record["best_round"]
        path = self.manifest.folder / self.record["checkpoint"]
        arrays = self._trained(load_checkpoint(path, self.record["sha256"]))
        self.record["test"] = self._evaluate(best, arrays, "test")
        self.record["test_dropped"] = self.strategy.exchange.dropped
        self.record["status"] = "complete"
        self.record["last"] = {}
        self.manifest.save()
        self.manifest.remove_unnamed_checkpoints()


def selected(entry: Record) -> float:
    """The validation figure by which rounds are compared."""
    protocol, metric = SELECT_BY
    valid = entry["valid"]
    return sum(float(valid[group][protocol][metric]) for group in SELECT_GROUPS if group in valid)


def _scalar(sums: MetricRecord, key: str) -> float:
    value: Any = sums[key]
    return float(value)
