"""Local training: every participating user starts from the same global arrays."""

from collections import defaultdict

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from client_app.clipping import clipped_weights
from client_app.data import Dataset, Rows
from client_app.mixture_objective import MixtureObjective
from client_app.objective import BackboneObjective, Batch, Losses, Objective, batches
from client_app.recall import Recall
from shared_model.model import Arrays, Recommender, freeze, read_groups
from shared_model.plan import LocalUpdate, MixturePlan, RoundPlan


def train_round(
    model: Recommender,
    dataset: Dataset,
    rows: Rows,
    plan: RoundPlan,
    users_per_batch: int,
    mixing: tuple[MixturePlan, Recall] | None = None,
) -> LocalUpdate:
    """Train the node's participating users (``rows`` [N] of the dataset) and sum their updates.

    ``model`` holds the round's global arrays, and holds them again on return. One local step needs
    one backward pass a batch, since the sum of the users' gradients is the gradient of the sum;
    more steps train stacked copies of the parameters, and clipping needs each user's own update.
    Stages 2 and 3 need ``mixing``.
    """
    freeze(model, model.stage)
    objective: Objective = BackboneObjective(model, dataset, plan)
    if mixing is not None:
        objective = MixtureObjective(model, dataset, plan, *mixing)
    together = plan.local_steps == 1 and plan.clip_norm == 0
    train_batch = _one_step if together else _each_user
    sums = {n: torch.zeros_like(p) for n, p in read_groups(model, model.stage.trained).items()}
    weight, nats, targets, participants = 0.0, 0.0, 0, 0
    logs: dict[str, float] = defaultdict(float)
    for batch in batches(objective, dataset, rows, plan, users_per_batch):
        losses = train_batch(model, objective, batch, plan, sums)
        nats += float(losses.nats.sum())
        weight += float(batch.weights.sum())
        targets += batch.targets
        participants += len(batch.keys)
        for name, value in losses.logs.items():
            logs[name] += float(value.sum())
    return LocalUpdate(sums, weight, nats, targets, participants, dict(logs))


def _dropout_keys(batch: Batch, plan: RoundPlan, step: int) -> Tensor:
    """The batch's dropout names in a local step. [B] int64."""
    return torch.from_numpy(plan.dropout_keys(batch.keys, step)).to(batch.weights.device)


def _one_step(
    model: Recommender, objective: Objective, batch: Batch, plan: RoundPlan, sums: Arrays
) -> Losses:
    """Add the batch's weighted updates to ``sums``; returns its losses."""
    losses = objective.weighted(batch, _dropout_keys(batch, plan, 0))
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(losses.total, [parameters[name] for name in sums])
    for name, gradient in zip(sums, gradients, strict=True):
        sums[name].sub_(gradient, alpha=plan.learning_rate)
    return losses


def _each_user(
    model: Recommender, objective: Objective, batch: Batch, plan: RoundPlan, sums: Arrays
) -> Losses:
    """The same user by user, for several local steps or clipping.

    Returns the losses before the first step.
    """
    on_cpu = batch.weights.device.type == "cpu"  # where stacking costs 10 times what it saves
    own_updates = _one_by_one if plan.local_steps == 1 and on_cpu else _stacked
    moved, losses = own_updates(model, objective, batch, plan, list(sums))
    weights = batch.weights
    if plan.clip_norm:
        weights = clipped_weights(moved, weights, plan.clip_norm)
    for name in sums:
        sums[name] += torch.tensordot(weights, moved[name], dims=1)
    return losses


def _one_by_one(
    model: Recommender, objective: Objective, batch: Batch, plan: RoundPlan, trained: list[str]
) -> tuple[Arrays, Losses]:
    """Each user's update [B, ...] of the ``trained`` arrays, of one step, in the model itself.

    With them the losses.
    """
    parameters = dict(model.named_parameters())
    wanted = [parameters[name] for name in trained]
    keys = _dropout_keys(batch, plan, 0)
    moved = {n: p.new_empty(len(keys), *p.shape) for n, p in zip(trained, wanted, strict=True)}
    nats, logs = torch.zeros(()), dict[str, Tensor]()
    for user in range(len(keys)):
        losses = objective.weighted(batch.only(user), keys[user : user + 1])
        gradients = torch.autograd.grad(losses.total, wanted)
        for name, gradient in zip(trained, gradients, strict=True):
            torch.mul(gradient, -plan.learning_rate, out=moved[name][user])
        nats = nats + losses.nats.sum()
        for name, value in losses.logs.items():
            logs[name] = logs.get(name, 0.0) + value.sum()
    return moved, Losses(nats, nats, logs)


def _stacked(
    model: Recommender, objective: Objective, batch: Batch, plan: RoundPlan, trained: list[str]
) -> tuple[Arrays, Losses]:
    """The same for any number of steps: SGD on stacked copies, one for each user.

    With them the losses before the first step.
    """
    start = {name: p.detach() for name, p in model.named_parameters()}
    copies = {name: start[name].expand(len(batch.keys), *start[name].shape) for name in trained}

    def user_loss(
        own: Arrays, tensors: Arrays, key: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Arrays]]:
        losses = objective.of_users({**start, **own}, tensors, key)
        return losses.total.sum(), (losses.nats, losses.logs)

    losses = []
    for step in range(plan.local_steps):
        keys = _dropout_keys(batch, plan, step)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
            gradients, (total, (nats, logs)) = vmap(grad_and_value(user_loss, has_aux=True))(
                copies, batch.one_by_one(), keys[:, None]
            )
        losses.append(Losses(total, nats, logs))
        if plan.local_steps == 1:  # a difference of copies would round what is small away
            return {n: gradients[n].mul_(-plan.learning_rate) for n in trained}, losses[0]
        copies = {n: copies[n].sub(gradients[n], alpha=plan.learning_rate) for n in trained}
    return {name: copies[name] - start[name] for name in trained}, losses[0]
