"""What is refused before anything is trained, and what is left to do: by settings and manifest.

`feddmmr run` asks the same questions before it starts Flower, so nothing heavy is imported here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from server_app.record.manifest import Manifest
from server_app.record.schema import Config, SecureRecord, StageRecord
from shared_model.errors import ConfigError
from shared_model.model.shape import MODALITIES
from shared_model.protocol.config import Settings
from shared_model.protocol.settings import fields_of
from shared_model.secure.use import LEAST_SITES, MOST_SITES, threshold_of
from shared_model.stages import STAGES, Stage, stage_of


def asked_stages(settings: Settings) -> list[Stage]:
    """The stages that a run asks for, in order."""
    return list(STAGES.values()) if settings.stage == 0 else [stage_of(settings.stage)]


def stage_config(settings: Settings) -> Config:
    """What a stage is trained with, for its record: all but what a resumed run may change."""
    return {name: getattr(settings, name) for name in fields_of("run", "mixture", "stage")}


def has_work(settings: Settings, manifest: Manifest, stage: Stage) -> bool:
    """Whether a stage is to be trained, or trained on; ``False`` for a complete one.

    ``ManifestError`` if it comes before its time.
    """
    manifest.require_order(stage, stage_config(settings))
    return settings.redo or not manifest.is_complete(stage.number)


def first_work(settings: Settings, manifest: Manifest) -> Stage | None:
    """The first stage that a run would train; ``None`` if all that it asks for are complete.

    ``ManifestError`` if it comes before its time, or was cut off with other settings.
    """
    for stage in asked_stages(settings):
        if has_work(settings, manifest, stage):
            manifest.require_own_config(stage, stage_config(settings), settings.redo)
            return stage
    return None


def require_sites(settings: Settings, nodes: int) -> None:
    """``ConfigError`` if sums of so many nodes cannot be secure."""
    if settings.secure and not LEAST_SITES <= nodes <= MOST_SITES:
        raise ConfigError(
            "secure sums are of more nodes, or of fewer",
            where="run-config key 'aggregation'",
            expected=f"{LEAST_SITES} to {MOST_SITES} nodes",
            got=str(nodes),
            todo="of two nodes, each would know the other's update from the sum; start more "
            "SuperNodes (min-nodes waits for them), or choose another aggregation",
        )


def secure_record(settings: Settings, record: StageRecord, nodes: int) -> SecureRecord | None:
    """What a stage's sums promise; ``None`` if they are not secure.

    ``ConfigError`` if a stage that was cut off promised something else.
    """
    if not settings.secure:
        return None
    threshold = threshold_of(settings.secure_threshold, nodes)
    now: SecureRecord = {"against": settings.secure_against, "threshold": threshold, "sites": nodes}
    known = record.get("secure", now)
    if record["rounds"] and known != now:
        raise ConfigError(
            "the stage began with other secure sums",
            where="run-config keys 'secure-against' and 'secure-threshold'",
            expected=f"{known}",
            got=f"{now}",
            todo="restore them, or train the stage again with redo=true",
        )
    return now


def require_features(
    stages: Sequence[Stage],
    features: Mapping[str, Any],
    dims: tuple[int, int],
    modalities: str,
) -> None:
    """``ConfigError`` if a stage mixes content in and the data have none: before any training.

    ``features`` are the manifest's, ``dims`` the dimensions of visual and text.
    """
    mixing = [stage for stage in stages if stage.mixes]
    if not mixing:
        return
    if dims == (0, 0):
        raise ConfigError(
            f"stage {mixing[0].number} needs features, and the dataset has none",
            where="features.safetensors of the dataset",
            todo="make them with `feddmmr features encode` and import with --features, or run "
            "the ID backbone alone with stage=1",
        )
    kinds = MODALITIES if modalities == "both" else (modalities,)
    coverage = {kind: features[f"{kind}_coverage"] or 0.0 for kind in kinds}
    if not any(coverage.values()):
        raise ConfigError(
            f"stage {mixing[0].number} needs features, and no item has any",
            where=f"features.safetensors of the dataset, modalities={modalities!r}",
            expected="a row that is not zero",
            got=", ".join(f"{kind} coverage {share:.0%}" for kind, share in coverage.items()),
            todo="see whether item ids and pictures match with `feddmmr features analyze`, encode "
            "and import again, or choose other modalities",
        )
