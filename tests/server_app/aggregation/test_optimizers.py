"""Server optimizers against torch's own, on the negated delta."""

import pytest
import torch

from server_app.aggregation.optimizers import ServerOptimizer, scheduled_rate


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_equal_to_torch(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(7, generator=generator))
    reference = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.99), eps=1e-5),
    }[kind]([parameter])
    ours, arrays = ServerOptimizer(kind), {"a": parameter.detach().clone()}
    for _ in range(6):
        delta = torch.randn(7, generator=generator)
        arrays = ours.step(arrays, {"a": delta}, 0.1)
        parameter.grad = -delta
        reference.step()
        torch.testing.assert_close(arrays["a"], parameter.detach(), atol=1e-6, rtol=1e-5)


def test_schedules() -> None:
    assert [scheduled_rate("constant", 2.0, r, 10) for r in (1, 10)] == [2.0, 2.0]
    decay = [scheduled_rate("decay", 3.0, r, 10) for r in range(1, 11)]
    assert decay[:8] == [3.0] * 8
    assert decay[8:] == pytest.approx([2.0, 1.0])
    assert scheduled_rate("decay", 3.0, 1, 1) == 3.0
