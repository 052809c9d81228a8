"""The same model trained centrally: what federation has to live up to.

    uv run python -m benchmarks.central --dataset /abs/dataset --output central.json

Adam over shuffled batches of users, all other settings as in the app's run-config; the best epoch
by validation NDCG@10 (full) is tested once. On a GPU: ``--device cuda``.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.output import write_json
from client_app.data.dataset import Dataset, open_dataset, pad_batch
from client_app.evaluation.evaluate import evaluate_users
from client_app.training.losses import full_softmax
from shared_model.model.dropout import Dropout
from shared_model.model.recommender import ModelShape, Recommender, build
from shared_model.model.sasrec import PAD
from shared_model.protocol.metrics import Report
from shared_model.seeds import mix, rng, stable_hash


def train_epoch(
    model: Recommender, optimizer: torch.optim.Optimizer, dataset: Dataset, epoch: int, args: Any
) -> float:
    """One pass over all users; returns the mean loss per target in nats."""
    order = rng(args.seed, "epoch", epoch).permutation(dataset.num_users)
    device, total, count = model.item_embedding.weight.device, 0.0, 0
    for start in range(0, len(order), args.batch):
        rows = order[start : start + args.batch]
        padded = pad_batch(dataset, rows, "train", model.shape.max_length)
        inputs, targets = (torch.from_numpy(array).to(device) for array in padded)
        keys = mix(stable_hash(args.seed, "dropout", epoch), dataset.user_keys[rows])
        masks = Dropout(args.dropout, torch.from_numpy(keys.view(np.int64)).to(device))
        valid = targets != PAD
        hidden = model(inputs, masks)[valid]
        weights = hidden.new_full((len(hidden),), 1 / max(1, len(hidden)))
        table, absent = model.item_embedding.weight, torch.tensor([PAD], device=device)
        mean, plain = full_softmax(hidden, table, targets[valid], weights, absent)
        optimizer.zero_grad()
        mean.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total, count = total + float(plain), count + len(hidden)
    return total / count


def main() -> None:
    """Train, keep the best epoch by validation, test it once, write JSON."""
    args = _arguments()
    dataset = open_dataset(args.dataset)
    rows = np.arange(dataset.num_users)
    shape = ModelShape(dataset.num_items, args.hidden, args.heads, args.blocks, args.max_length)
    model = build(shape, args.seed, args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    started, best, best_state, epochs = time.monotonic(), -1.0, model.state_dict(), []
    for epoch in range(1, args.epochs + 1):
        loss = train_epoch(model, optimizer, dataset, epoch, args)
        if epoch % args.evaluate_every and epoch != args.epochs:
            continue
        valid = evaluate_users(model, dataset, rows, "valid", args.seed).report()
        epochs.append({"epoch": epoch, "loss": loss, "valid": valid})
        print(_line(f"epoch {epoch:3d} loss {loss:.4f}", valid), flush=True)
        if valid["all"]["full"]["ndcg@10"] > best:
            best = valid["all"]["full"]["ndcg@10"]
            best_state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best_state)
    test = evaluate_users(model, dataset, rows, "test", args.seed).report()
    seconds = time.monotonic() - started
    print(_line(f"test ({seconds:.0f} s)", test), flush=True)
    result = {"config": vars(args), "seconds": seconds, "epochs": epochs, "test": test}
    write_json(Path(args.output), result)


def _line(label: str, report: Report) -> str:
    cells = (f"{p} {v['hr@10']:.4f}/{v['ndcg@10']:.4f}" for p, v in report["all"].items())
    return "  ".join([label, "HR@10/NDCG@10", *cells])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--evaluate-every", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=200)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
