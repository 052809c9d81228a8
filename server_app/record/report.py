"""What a user sees: a line a round, and a table at the end."""

from rich.console import Console
from rich.table import Table

from server_app.record.manifest import Manifest
from server_app.record.schema import MISHAPS, SPLITS, PrivacyLedger, RoundRecord
from shared_model.protocol.config import Settings
from shared_model.protocol.metrics import PROTOCOLS, SAMPLED, Report

# The buckets are in the manifest alone.
TABLE_GROUPS = ("all", "all-with-cold", "as-cold", "cold", "cold-only")


def say(line: str) -> None:
    """A line in the run's log, at once."""
    print(line, flush=True)


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
    traffic = f"{_size(entry['bytes_down'])} down {_size(entry['bytes_up'])} up"
    parts += [f"{entry['seconds']:.1f} s", traffic]
    for what in MISHAPS:
        if names := sorted({node["node"] for node in entry.get(what, [])}):
            parts.append(f"{what} {_few(names)}")
    return "  ".join(parts)


def _valid(valid: Report, sampled: bool) -> str:
    """The headline figures of a validation, and among how many if that is not what it says."""
    users = f" of {valid['all']['full']['users']:.0f} users" if sampled else ""
    found = valid["all"].get("uniform-100")
    if found is None:
        return f"valid{users} - (nothing to rank among)"
    few = f" among {few_candidates(found)}" if few_candidates(found) else ""
    return f"valid{users} HR@10 {found['hr@10']:.4f} NDCG@10 {found['ndcg@10']:.4f}{few}"


def few_candidates(found: dict[str, float]) -> str:
    """The mean number of candidates of "uniform-100" if it is below that, or nothing."""
    count = found.get("candidates", float(SAMPLED))  # a round of an earlier version does not say
    return "" if count >= SAMPLED else f"{count:.1f}"


def shortfalls(report: Report) -> list[str]:
    """What a split's protocols lack: candidates, or users that have nothing to rank among."""
    notes = []
    for group in (group for group in TABLE_GROUPS if group in report):
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


def closing_table(manifest: Manifest) -> None:
    """Validation and test of every stage, and where the manifest is."""
    table = Table(title=f"run '{manifest.data['run']}'", title_justify="left")
    for heading in ("stage", "status", "best round", "split", "group"):
        table.add_column(heading)
    for protocol in PROTOCOLS:
        table.add_column(f"{protocol}\nHR@10 / NDCG@10", justify="right")
    for number, record in sorted(manifest.data["stages"].items()):
        for split in SPLITS:
            for group in TABLE_GROUPS:
                if cells := record[split].get(group):
                    head = (number, record["status"], str(record["best_round"]), split, group)
                    table.add_row(*head, *(_cell(cells.get(protocol)) for protocol in PROTOCOLS))
    console = Console(width=120)
    console.print(table)
    for number, record in sorted(manifest.data["stages"].items()):
        for split in SPLITS:
            for note in shortfalls(record[split]):
                say(f"note: stage {number} {split}, {note}")
    for number, record in sorted(manifest.data["stages"].items()):
        privacy = record["privacy"]
        if "releases" in privacy:
            say(privacy_line(number, privacy))
    say(f"manifest: {manifest.path}")


def _cell(values: dict[str, float] | None) -> str:
    return "-" if values is None else f"{values['hr@10']:.4f} / {values['ndcg@10']:.4f}"


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
