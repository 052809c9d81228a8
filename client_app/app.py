"""The ClientApp: what a node does when it is asked to prepare, train or evaluate."""

import json
from collections.abc import Callable
from dataclasses import replace

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client_app.evaluation.evaluate import evaluate_users
from client_app.node import Node, open_node
from client_app.tables import held_table
from client_app.training.clipping import covered
from client_app.training.objective import participants
from client_app.training.round_candidates import met_items
from client_app.training.train import train_round
from shared_model.errors import FedDMMRError, NodeError
from shared_model.model.recommender import Recommender, load_groups
from shared_model.protocol import messages, secure_messages
from shared_model.protocol.plan import LocalUpdate, MixturePlan, RoundPlan
from shared_model.protocol.secure_messages import SecureRequest
from shared_model.protocol.wire import down, up
from shared_model.stages import TABLE, Stage, group_of, stage_of
from shared_model.transport.folding import fold, is_folded, unfold
from shared_model.transport.packing import is_packed, pack, unpack

app = ClientApp()


@app.query("prepare")
def prepare(message: Message, context: Context) -> Message:
    """Report what this node hosts: counts and fingerprints."""
    return _answer(message, context, lambda node, _: messages.report_content(node.report()))


@app.query("novelty")
def novelty(message: Message, context: Context) -> Message:
    """Count the novelty that a sample of this node's users meets."""
    return _answer(message, context, _novelty)


@app.query("items")
def items(message: Message, context: Context) -> Message:
    """Tell which items this node's participants of a round have trained on."""
    return _answer(message, context, _items)


@app.query("keys")
def keys(message: Message, context: Context) -> Message:
    """Draw this node's key of a session of secure sums."""
    read, told = secure_messages.read_session, secure_messages.key_content
    return _answer(message, context, lambda node, asked: told(node.site.draw(read(asked))))


@app.query("reveal")
def reveal(message: Message, context: Context) -> Message:
    """Give this node's shares of the sum that it sent its part of last."""
    read, told = secure_messages.read_reveal, secure_messages.shares_content
    return _answer(message, context, lambda node, asked: told(node.site.reveal(*read(asked))))


@app.query("forget")
def forget(message: Message, context: Context) -> Message:
    """Delete this node's key of a session."""
    return _answer(message, context, _forget)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the participating users of a round and answer with their summed update."""
    return _answer(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score this node's users with the arrays sent along."""
    return _answer(message, context, _evaluate)


def _novelty(node: Node, content: RecordDict) -> RecordDict:
    total_users = messages.read_novelty_request(content)
    return messages.novelty_content(node.novelty(total_users))


def _items(node: Node, content: RecordDict) -> RecordDict:
    plan = messages.read_plan(content)
    node.check_plan(plan)
    masked = node.settings.secure or node.site.only
    if plan.private or node.settings.private or masked or not plan.candidates:
        raise NodeError("a round whose items are nobody's business", where=node.placement.name)
    having = participants(node.dataset, node.rows, plan)
    met = met_items(node.dataset, having, node.settings.max_length)
    return messages.arrays_content({messages.MET: torch.from_numpy(met).int()})


def _forget(node: Node, content: RecordDict) -> RecordDict:
    node.site.forget(secure_messages.read_session(content))
    return RecordDict()


def _train(node: Node, content: RecordDict) -> RecordDict:
    plan = messages.read_plan(content)
    node.check_plan(plan)
    request = _masks(node, content)
    stage = stage_of(plan.stage)
    model = _loaded(node, stage, content)
    if model is None:
        return messages.ask_for_table(content)
    size = node.settings.users_per_batch
    if not stage.mixes:
        met = messages.read_met(content)
        update = train_round(model, node.dataset, node.rows, plan, size, met=met)
        return _told(node, plan, update, request)
    mixing = messages.read_mixing(content)
    if not _frozen(node, model, mixing, content):
        return messages.ask_for_frozen(mixing.frozen_sha256)
    model.forget()
    recall = node.recall(model)
    update = train_round(model, node.dataset, node.rows, plan, size, (mixing, recall))
    return _told(node, plan, update, request)


def _loaded(node: Node, stage: Stage, content: RecordDict) -> Recommender | None:
    """The resident model with a request's arrays; ``None`` if the node lacks what they change."""
    arrays = down(node.settings).decode(messages.read_arrays(content))
    version = messages.read_table(content)
    if version is None:
        held_table.cache_clear()  # on its disk it stays
        model = node.model(stage)
        load_groups(model, arrays, stage.trained)
        return model
    arrays.pop(messages.MET, None)
    held, rows = node.held_table(), arrays.pop(messages.ROWS, None)
    if not held.bring(version, rows, arrays.pop(TABLE)):
        return None
    model = node.model_around(stage, held.table)
    load_groups(model, arrays, set(stage.trained) - {group_of(TABLE)})
    return model


def _frozen(node: Node, model: Recommender, mixing: MixturePlan, content: RecordDict) -> bool:
    """Load the frozen groups, of the request or kept; ``False`` if there are none."""
    sent = messages.read_frozen(content)
    given = None if sent is None else down(node.settings).decode(sent)
    return node.load_frozen(model, mixing.frozen_sha256, given)


def _masks(node: Node, content: RecordDict) -> SecureRequest | None:
    """What the answer's masks are made of; ``None`` for a bare one, where that is in order."""
    request = secure_messages.read_secure(content)
    if request is None and (node.settings.secure or node.site.only):
        raise NodeError(
            "this node sends its update under masks alone",
            where=node.placement.name,
            expected="a run with aggregation='secure'",
            got="a request for the bare update",
            todo="for other runs take secure-only out of the node config",
        )
    return request


def _told(
    node: Node, plan: RoundPlan, update: LocalUpdate, request: SecureRequest | None
) -> RecordDict:
    """A round's answer; under masks, or differential privacy, only what is covered by it."""
    if request is not None:
        return secure_messages.masked_content(node.site.mask(update, plan, request))
    if plan.private:
        update = covered(update)
    if plan.noise_std:
        update = node.noised(update, plan)
    wire, rows = up(node.settings, plan.stage, plan.round, node.placement.name), update.rows
    named = update.arrays if rows is None else update.arrays | {messages.ROWS: rows}
    return messages.update_content(replace(update, arrays=wire.encode(named), rows=None))


def _evaluate(node: Node, content: RecordDict) -> RecordDict:
    request = messages.read_evaluation(content)
    node.check_plan(request)
    stage = stage_of(request.stage)
    model = _loaded(node, stage, content)
    if model is None:
        return messages.ask_for_table(content)
    rows = node.rows[request.scores(node.dataset.user_keys[node.rows])]
    cases = (node.dataset, rows, request.split, request.seed)
    cuts = json.loads(request.cuts) if request.cuts else None
    if not stage.mixes:
        return messages.metrics_content(evaluate_users(model, *cases, cuts=cuts))
    mixing = messages.read_mixing(content)
    if not _frozen(node, model, mixing, content):
        return messages.ask_for_frozen(mixing.frozen_sha256)
    recall = node.recall(model, told_apart=True)
    sums = evaluate_users(model, *cases, (recall.settings(mixing), recall), cuts)
    return messages.metrics_content(sums)


def _answer(
    message: Message, context: Context, act: Callable[[Node, RecordDict], RecordDict]
) -> Message:
    """Run a handler. An error of our own tree travels as one line, not as a Ray traceback.

    A request that came packed or folded is answered so.
    """
    given = message.content
    try:
        node = open_node(context.node_config, context.run_config)
        content = act(node, unpack(unfold(given)))
    except FedDMMRError as error:
        content = messages.error_content(str(error))
    if is_folded(given) or is_packed(given):
        content = pack(content)
    return Message(fold(content) if is_folded(given) else content, reply_to=message)
