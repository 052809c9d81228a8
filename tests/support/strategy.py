"""A strategy's round without nodes: what is sent and answered."""

import dataclasses

import torch
from flwr.app import Message, RecordDict

from server_app.nodes.census import Census
from shared_model.protocol import messages
from shared_model.protocol.config import default_config, parse_settings
from shared_model.protocol.messages import NodeReport
from tests.support.paths import ROOT

DEFAULTS = default_config(ROOT / "pyproject.toml")
CONFIG = {"server-optimizer": "sgd", "server-learning-rate": 0.5, "server-schedule": "constant"}
SETTINGS = parse_settings(DEFAULTS | CONFIG)
NODE = NodeReport("partition-0", 0, 3, 5, 50, 9, 0, "00", "cat", "", "{}", 0, 0, "app", 5)
CENSUS = Census(
    {70 + i: dataclasses.replace(NODE, name=f"partition-{i}", partition=i) for i in range(3)}
)
START = {"a": torch.tensor([1.0, 2.0, 3.0])}
ARRAYS = messages.to_record(START)


def answer(request: Message, content: RecordDict) -> Message:
    request.metadata.__dict__["_message_id"] = "id"
    return Message(content, reply_to=request)
