"""A minimal stock Flower app: FedAvg sends the whole model to one user a SuperNode, and back.

``speed_flower.py`` puts a copy of this file into a folder of its own, with a pyproject.toml, and
runs it with ``flwr run``. The user's training is the plain loop's.
"""

import json
import time
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.speed_parts.work import Work, open_work, trained_user
from shared_model.protocol.config import Value

client = ClientApp()
server = ServerApp()


@lru_cache(maxsize=1)
def _work(config: str) -> Work:
    opened: dict[str, Value] = json.loads(config)
    return open_work(opened, 1)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the node's one user from the model that was sent."""
    work = _work(str(context.run_config["work"]))
    work.model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    own, weight = trained_user(work, work.plan, int(context.node_config["partition-id"]))
    arrays = ArrayRecord(own.state_dict())
    metrics = MetricRecord({"num-examples": weight})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg over all nodes; writes each round's seconds as JSON."""
    torch.set_num_threads(1)
    work = _work(str(context.run_config["work"]))
    nodes, times = int(context.run_config["nodes"]), [time.monotonic()]
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(0.1)

    def note(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        times.append(time.monotonic())
        return MetricRecord({"round": server_round})

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    rounds = int(context.run_config["num-rounds"])
    strategy.start(grid, ArrayRecord(work.model.state_dict()), num_rounds=rounds, evaluate_fn=note)
    seconds = [after - before for before, after in pairwise(times[1:])]
    Path(str(context.run_config["output"])).write_text(json.dumps(seconds))
