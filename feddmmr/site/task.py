"""One task of a SuperNode: fetch message and app, have the worker answer, hand the answer back.

What `flwr-clientapp` does (flwr.supernode.runtime.run_clientapp), by the same functions of Flower;
they are not public, which is why pyproject.toml names one version.
"""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.cli.install import install_from_fab
from flwr.common.config import get_project_dir
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec.executor import ExecutionSpec
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from .worker import Bundle, Keeper, WorkerFailed

_Input = tuple[Message, Context, Run, Fab]


class Task:
    """A ClientApp task, by its token."""

    def __init__(self, spec: ExecutionSpec, keeper: Keeper, heard: Callable[[], None]) -> None:
        """``heard``: what to do whenever the SuperNode answered."""
        self._keeper, self._heard = keeper, heard
        self._client = RuntimeHttpClient.from_server_address(
            server_address=spec.runtime_api_address,
            insecure=spec.insecure,
            root_certificates=validate_and_resolve_root_certificates(
                spec.root_certificates_path, spec.insecure
            ),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
                RuntimeTokenHttpInterceptor(spec.token),
            ],
            retry_invoker=make_simple_http_retry_invoker(),
        )

    def run(self) -> None:
        """From the message to its answer. A peer that is gone raises nothing: it will ask again."""
        heartbeat = HeartbeatSender(self._beat)
        heartbeat.start()
        context, status, details = None, SubStatus.FAILED, "the task could not be fetched"
        try:
            given = pull_task_input(self._client)
            reply, context = self._answer(given)
            status, details = SubStatus.COMPLETED, ""
            if reply.has_error():
                status, details = SubStatus.FAILED, reply.error.reason or ""
            push_message(self._client, reply, context)
        except Exception as error:  # noqa: BLE001 (of HTTP, disk or the peer: the site goes on)
            self._keeper.say(f"task failed: {type(error).__name__}: {error}")
        finally:
            push_task_output(self._client, context, status, details)
            heartbeat.stop()
            self._client.close()

    def _answer(self, given: _Input) -> tuple[Message, Context]:
        """The worker's reply, or the error that stands for it."""
        message, context, run, fab = given
        try:
            folder = Path(get_project_dir(run.fab_id, run.fab_version, fab.hash_str))
            bundle = Bundle(folder, run.fab_id, run.fab_version, fab.hash_str)
            if not (self._keeper.has(bundle) and folder.is_dir()):  # unpacking takes 0.1 s
                install_from_fab(fab.content, skip_prompt=True)
            protos = (message_to_proto(message), context_to_proto(context))
            frames = [
                *(proto.SerializeToString() for proto in protos),
                b"%d" % TaskIdentity.task_id,
            ]
            reply, after = self._keeper.ask(bundle, frames, _limit(message, context))
            return (
                message_from_proto(ProtoMessage.FromString(reply)),
                context_from_proto(ProtoContext.FromString(after)),
            )
        except WorkerFailed as error:
            code, reason = ErrorCode.CLIENT_APP_CRASHED, str(error)
        except Exception as error:  # noqa: BLE001 (a bundle that is no app: as Flower tells it)
            code, reason = ErrorCode.LOAD_CLIENT_APP_EXCEPTION, f"{type(error)}:<'{error}'>"
        return Message(Error(code=code, reason=reason), reply_to=message), context

    def _beat(self) -> bool:
        """Tell the SuperNode that the task goes on; one that it gave up needs no worker."""
        try:
            alive = self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
        except Exception:  # noqa: BLE001 (Flower tries again, as long as the task lasts)
            return False
        self._heard()
        if not alive:
            self._keeper.stop("its run was stopped")
        return True


def _limit(message: Message, context: Context) -> float:
    """Seconds after which nobody waits for the answer."""
    configured = context.run_config.get("round-timeout", message.metadata.ttl)
    return min(float(configured), message.metadata.ttl)
