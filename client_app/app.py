"""The ClientApp: what a node does when it is asked to prepare, train or evaluate."""

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client_app.evaluate import evaluate_users
from client_app.node import Node, open_node
from client_app.train import train_round
from shared_model import messages
from shared_model.errors import FedDMMRError
from shared_model.model import load_groups
from shared_model.stages import stage_of

app = ClientApp()


@app.query("prepare")
def prepare(message: Message, context: Context) -> Message:
    """Report what this node hosts: counts and fingerprints."""
    return _answer(message, context, lambda node: messages.report_content(node.report()))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the participating users of a round and answer with their summed update."""
    return _answer(message, context, lambda node: _train(node, message.content))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score this node's users with the arrays sent along."""
    return _answer(message, context, lambda node: _evaluate(node, message.content))


def _train(node: Node, content: RecordDict) -> RecordDict:
    plan = messages.read_plan(content)
    node.check_plan(plan)
    load_groups(node.model, messages.read_arrays(content), stage_of(plan.stage).trained)
    update = train_round(node.model, node.dataset, node.rows, plan, node.settings.users_per_batch)
    return messages.update_content(update)


def _evaluate(node: Node, content: RecordDict) -> RecordDict:
    request = messages.read_evaluation(content)
    node.check_plan(request)
    load_groups(node.model, messages.read_arrays(content), stage_of(request.stage).groups)
    sums = evaluate_users(node.model, node.dataset, node.rows, request.split, request.seed)
    return messages.metrics_content(sums)


def _answer(message: Message, context: Context, act: Callable[[Node], RecordDict]) -> Message:
    """Run a handler. An error of our own tree travels as one line, not as a Ray traceback."""
    try:
        content = act(open_node(context.node_config, context.run_config))
    except FedDMMRError as error:
        content = messages.error_content(str(error))
    return Message(content, reply_to=message)
