"""The worker's program: load a bundle's ClientApp once, then answer messages as long as asked.

Started by its path, without this package, so that every other import is the bundle's own.
"""

import sys
from collections.abc import Callable
from logging import ERROR
from multiprocessing.connection import Connection

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import LoadClientAppError
from flwr.clientapp.utils import get_load_client_app_fn
from flwr.common.constant import ErrorCode
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore import log
from flwr.supercore.task_identity import TaskIdentity


def main() -> None:
    """Answer until the other side is gone."""
    number, fab_id, version, sha256 = sys.argv[1:]
    with Connection(int(number)) as site:
        load = get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
        while True:
            try:
                message = message_from_proto(ProtoMessage.FromString(site.recv_bytes()))
                context = context_from_proto(ProtoContext.FromString(site.recv_bytes()))
                TaskIdentity.task_id = int(site.recv_bytes())
            except EOFError:
                return
            reply = answer(lambda: load(fab_id, version, sha256), message, context)
            site.send_bytes(message_to_proto(reply).SerializeToString())
            site.send_bytes(context_to_proto(context).SerializeToString())


def answer(load: Callable[[], ClientApp], message: Message, context: Context) -> Message:
    """The app's reply; an exception of it is an error reply, told as Flower tells it."""
    TaskIdentity.run_id, TaskIdentity.node_id = context.run_id, context.node_id
    code, reason = ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ""
    try:
        return load()(message=message, context=context)
    except LoadClientAppError as error:
        log(ERROR, "the ClientApp could not be loaded", exc_info=error)
        code = ErrorCode.LOAD_CLIENT_APP_EXCEPTION
        reason = "An exception was raised when attempting to load `ClientApp`"
    except Exception as error:  # noqa: BLE001 (whatever it raises is its answer)
        log(ERROR, "the ClientApp raised an exception", exc_info=error)
        reason = f"{type(error)}:<'{error}'>"
    return Message(Error(code=code, reason=reason), reply_to=message)


if __name__ == "__main__":
    main()
