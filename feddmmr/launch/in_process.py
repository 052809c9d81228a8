"""The in-process driver: the same ClientApp, strategy and round loop, without SuperLink or Ray.

For tests, tuning and GPUs: one process, one resident model, messages handed over in memory.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client_app.app import app as client_app
from server_app.app import federate
from server_app.record.schema import ManifestDocument
from shared_model.protocol.config import Value, default_config, parse_settings

_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_FIRST_NODE = 1000


class InProcessGrid(Grid):
    """A Grid whose nodes are calls of the ClientApp in this process.

    ``node_configs`` has one entry a node. An exception of a handler becomes an error reply, as
    Flower's runtimes do it.
    """

    def __init__(
        self, node_configs: list[dict[str, Value]], run_config: Mapping[str, Value]
    ) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.contexts = {
            _FIRST_NODE + i: Context(
                run_id=1,
                node_id=_FIRST_NODE + i,
                node_config=dict(config),
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i, config in enumerate(node_configs)
        }
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Nothing: there is one run."""

    @property
    def run(self) -> Any:
        """Not available in process."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not available in process; messages are constructed directly."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Every node is online."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Handle each message at once; its reply waits to be pulled."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid4().hex
            self._replies[message.metadata.message_id] = self._handle(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages."""
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Replies of all nodes; nothing here can be late."""
        return self.pull_messages(self.push_messages(messages))

    def _handle(self, message: Message) -> Message:
        try:
            return client_app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001 (any failure of a handler is an error reply)
            return Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)


def run_in_process(num_supernodes: int, **overrides: Value) -> ManifestDocument:
    """Run the app on ``num_supernodes`` partitions; returns the manifest's document.

    ``overrides`` are run-config keys with ``_`` for ``-``; the rest comes from ``pyproject.toml``.
    """
    config = default_config(_PYPROJECT) | {k.replace("_", "-"): v for k, v in overrides.items()}
    nodes: list[dict[str, Value]] = [
        {"partition-id": i, "num-partitions": num_supernodes} for i in range(num_supernodes)
    ]
    return federate(InProcessGrid(nodes, config), parse_settings(config))
