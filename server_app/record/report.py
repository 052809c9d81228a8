"""What a user sees while a run goes on: a line a round, and at the end results and remarks."""

from collections.abc import Sequence

from rich.console import Console

from server_app.record.manifest import Manifest
from server_app.record.results import RESULT_GROUPS, TABLE_GROUPS, WIDTH, results_table
from server_app.record.schema import MISHAPS, SPLITS, PrivacyLedger, RoundRecord, StageRecord
from server_app.record.selection import selected_parts, without_say
from server_app.record.units import size
from shared_model.protocol.config import Settings
from shared_model.protocol.metrics import PROTOCOLS, SAMPLED, Report


def say(line: str) -> None:
    """A line in the run's log, at once."""
    print(line, flush=True)


def by_data_line(stage: int, given: Settings, fitted: Settings) -> str:
    """What the data decides about a stage; empty if the settings left nothing open."""
    told = []
    if not given.num_rounds:
        told.append(f"{fitted.num_rounds} rounds")
    if given.dropout < 0:
        told.append(f"dropout {fitted.dropout:g}")
    if stage > 1 and not given.targets_per_user:
        told.append(f"{fitted.targets_per_user} targets")
    return f"stage {stage}: {', '.join(told)}, by the data" if told else ""


def round_line(stage: int, num_rounds: int, entry: RoundRecord, sampled: bool = False) -> str:
    """Round, participants, loss, validation, gate, router, seconds and bytes of one round.

    With ``sampled``, how many users were validated with, too.
    """
    loss = "-" if entry["loss"] is None else f"{entry['loss']:.4f}"
    parts = [
        f"stage {stage} round {entry['round']:>{len(str(num_rounds))}}/{num_rounds}",
        f"{entry['participants']} users",
        f"loss {loss}",
    ]
    if "valid" in entry:
        parts.append(_valid(entry["valid"], sampled))
    if "gate" in entry:
        parts.append(f"gate {entry['gate']:.3f}")
    if "router" in entry:
        router = entry["router"]
        parts.append(f"visual {router['visual']:.2f} text {router['text']:.2f}")
    if "epsilon" in entry:
        parts.append(f"epsilon {entry['epsilon']:.3f}")
    traffic = f"{size(entry['bytes_down'])} down {size(entry['bytes_up'])} up"
    parts += [f"{entry['seconds']:.1f} s", traffic]
    for what in MISHAPS:
        if names := sorted({node["node"] for node in entry.get(what, [])}):
            parts.append(f"{what} {_few(names)}")
    return "  ".join(parts)


def _valid(valid: Report, sampled: bool) -> str:
    """What the best round is chosen by, and HR@10 among 100, or among fewer if there are no more.

    With content the first is a sum: ``valid NDCG@10 0.2150 + 0.1250 as-cold``.
    """
    known, *content = selected_parts(valid).items()
    chosen = " + ".join([f"{known[1]:.4f}", *(f"{value:.4f} {group}" for group, value in content)])
    found = valid["all"].get("uniform-100")
    users = f" of {valid['all']['full']['users']:.0f} users" if sampled else ""
    if found is None:
        return f"valid{users} NDCG@10 {chosen} HR@10 - (nothing to rank among)"
    few = f" among {few_candidates(found)}" if few_candidates(found) else ""
    return f"valid{users} NDCG@10 {chosen} HR@10 {found['hr@10']:.4f}{few}"


def few_candidates(found: dict[str, float]) -> str:
    """The mean number of candidates of "uniform-100" if it is below that, or nothing."""
    count = found.get("candidates", float(SAMPLED))  # a round of an earlier version does not say
    return "" if count >= SAMPLED else f"{count:.1f}"


def shortfalls(report: Report, groups: Sequence[str] = TABLE_GROUPS) -> list[str]:
    """What a split's protocols lack: candidates, or users that have nothing to rank among."""
    notes = []
    for group in (group for group in groups if group in report):
        everyone = report[group]["full"]["users"]
        for protocol in PROTOCOLS:
            found = report[group].get(protocol, {"users": 0.0})
            if left_out := int(everyone - found["users"]):
                notes.append(
                    f"{group}, {protocol}: {left_out} users with nothing to rank among are left out"
                )
        if few := few_candidates(report[group].get("uniform-100", {})):
            notes.append(
                f"{group}, uniform-100: ranked among {few} on average, since fewer than 100 exist"
            )
    return notes


def resume_command(settings: Settings) -> str:
    """What a user types to go on with a run that stopped."""
    where = {"run": settings.run, "home": settings.home, "dataset": settings.dataset}
    keys = " ".join(f"{key}='{value}'" for key, value in where.items() if value)
    command = f'flwr run . --run-config "stage={settings.stage} {keys}"'
    return f"submit the run again with all its settings, it resumes: {command}"


def privacy_line(stage: str, privacy: PrivacyLedger) -> str:
    """What a stage has promised to a user, together with the stages before it."""
    return (
        f"stage {stage}: epsilon {privacy['epsilon']:.3f} at delta {privacy['delta']:g} in all "
        f"for each user (noised rounds {len(privacy['releases'])}, "
        f"clip norm {privacy['clip_norm']:g}, "
        f"noise multiplier {privacy['noise_multiplier']:g}, sampling {privacy['sampling_rate']:g})"
    )


def closing(manifest: Manifest, trained: Sequence[int]) -> None:
    """The end of a run's log: results if any stage was ``trained`` now, and where there is more."""
    stages = {str(number) for number in trained}
    if stages:
        Console(width=WIDTH).print(results_table(manifest.data))
        for number, record in sorted(manifest.data["stages"].items()):
            if number in stages:
                say_remarks(number, record, RESULT_GROUPS)
    home = manifest.folder.parent.parent
    say(f"all groups, and baselines: feddmmr runs show {manifest.data['run']} --all --home {home}")
    say(f"manifest: {manifest.path}")


def say_remarks(number: str, record: StageRecord, groups: Sequence[str] = TABLE_GROUPS) -> None:
    """What a reader of a stage's figures has to know beside them."""
    for split in SPLITS:
        for note in shortfalls(record[split], groups):
            say(f"note: stage {number} {split}, {note}")
    if note := without_say(record["valid"]):
        say(f"note: stage {number} valid, {note}")
    privacy = record["privacy"]
    if "releases" in privacy:
        say(privacy_line(number, privacy))


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")
