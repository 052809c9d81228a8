"""`feddmmr privacy`: what noise a budget needs, or what epsilon a noise gives, before a run."""

from typing import Annotated

import typer

from shared_model.errors import ConfigError
from shared_model.protocol.dp_rules import LEAST_FRACTION, LEAST_NOISE, MOST_NOISE
from shared_model.secure.use import MOST_SITES, spread_of, threshold_of

app = typer.Typer(help="Differential privacy: plan a run's noise.", no_args_is_help=True)


@app.callback()
def privacy() -> None:
    """Differential privacy: plan a run's noise."""


@app.command()
def plan(
    users: Annotated[int, typer.Option(help="Users of all nodes.", min=1)],
    fraction: Annotated[float, typer.Option(help="fraction-train of the run.")],
    rounds: Annotated[int, typer.Option(help="num-rounds of the first stage.")],
    further: Annotated[
        list[int] | None, typer.Argument(help="num-rounds of the stages after it, in order.")
    ] = None,
    epsilon: Annotated[float, typer.Option(help="Budget of all stages together.")] = 0.0,
    multiplier: Annotated[float, typer.Option(help="Or the noise; its epsilon is told.")] = 0.0,
    delta: Annotated[float, typer.Option(help="At which epsilon is told.")] = 1e-5,
    sites: Annotated[
        int, typer.Option(help="That share the noise (dp-noise-on=secure).", min=0, max=MOST_SITES)
    ] = 0,
    threshold: Annotated[float, typer.Option(help="secure-threshold of the run.")] = 0.0,
) -> None:
    """The noise multiplier that keeps a budget over all rounds, by the accountant of a run."""
    from server_app.privacy import accountant as accountant

    stages = [rounds, *(further or [])]
    _check(fraction, stages, epsilon, multiplier, delta)
    spread = spread_of(threshold, sites) if sites else 1.0
    noise = multiplier or accountant.noise_for(fraction, sum(stages), epsilon, delta, spread)
    spent = 0
    print(f"dp-noise-multiplier={noise:g} fraction-train={fraction:g} dp-delta={delta:g}")
    for number, count in enumerate(stages, 1):
        spent += count
        told = accountant.epsilon(accountant.planned(fraction, noise, spent, spread), delta)
        print(f"after {spent} rounds ({number} of {len(stages)} stages): epsilon {told:.3f}")
    on_mean = noise * spread / (fraction * users)
    print(f"noise on a round's mean: {on_mean:.3g} of the clip norm a number")
    if sites and (least := threshold_of(threshold, sites)) < sites:
        print(
            f"that is a secure sum of all {sites} sites; one of {least} has {on_mean / spread:.3g}"
        )
        print("each round without a site costs more; the last one is counted as of the fewest")
    if delta * users >= 1:
        print(f"note: delta is not below 1/users = {1 / users:.3g}, so it promises little")


def _check(
    fraction: float, stages: list[int], epsilon: float, multiplier: float, delta: float
) -> None:
    """``ConfigError`` for a number out of range, or not exactly one of epsilon and multiplier."""
    noise_is_usable = multiplier == 0 or LEAST_NOISE <= multiplier <= MOST_NOISE
    for name, value, holds, expected in (
        ("fraction", fraction, LEAST_FRACTION <= fraction <= 1, "in [1e-6, 1]"),
        ("rounds", min(stages), min(stages) >= 1, ">= 1"),
        ("delta", delta, 1e-10 <= delta < 1, "in [1e-10, 1)"),
        ("epsilon", epsilon, 0 <= epsilon < float("inf"), "> 0"),
        ("multiplier", multiplier, noise_is_usable, f"in [{LEAST_NOISE}, {MOST_NOISE:g}]"),
    ):
        if not holds:
            raise ConfigError("wrong value", where=f"--{name}", expected=expected, got=f"{value:g}")
    if bool(epsilon) == bool(multiplier):
        raise ConfigError("give either --epsilon or --multiplier", where="feddmmr privacy plan")
