"""Settings: what each declares at its field, and what follows from that for a run's stages."""

import re
from dataclasses import fields, replace
from typing import get_args

from server_app.admission import stage_config
from shared_model.protocol.config import default_config, key_of, parse_settings
from shared_model.protocol.plan import MixturePlan, RoundPlan
from shared_model.protocol.rules import Scope, Setting
from shared_model.protocol.settings import DECLARED, Settings, fields_of
from tests.support.file_map import sources
from tests.support.paths import ROOT

SETTINGS = parse_settings(default_config(ROOT / "pyproject.toml"))
OPERATIONAL = {"stage", "run", "home", "dataset", "redo", "round_timeout", "min_nodes"}
OPERATIONAL |= {"node_timeout", "min_participation", "checkpoint_every"}
OPERATIONAL |= {"secure_threshold", "secure_against"}  # a stage's record has them apart
OPERATIONAL |= {"users_per_batch", "device", "tensorboard", "mlflow"}
SHARED = (
    "seed",
    "wire_dtype",
    "evaluate_users",
    "hidden_size",
    "num_heads",
    "num_blocks",
    "max_length",
)
SHARED_BY_MIXTURES = (
    "modalities",
    "memory_short_term",
    "memory_long_term",
    "memory_novelty",
    "memory_surprise",
)


def test_every_field_declares_its_type_its_values_and_its_scope() -> None:
    assert list(DECLARED) == [field.name for field in fields(Settings)]
    for name, (kind, setting) in DECLARED.items():
        assert kind in (bool, int, float, str), name
        assert isinstance(setting, Setting), name
        assert setting.rule.expected, name
        assert setting.scope in get_args(Scope), name


def test_the_scopes_are_those_that_manifests_are_written_by() -> None:
    """A changed scope makes runs that were cut off, or complete, unlike those of before."""
    assert set(fields_of("operational")) == OPERATIONAL
    assert fields_of("run") == SHARED
    assert fields_of("mixture") == SHARED_BY_MIXTURES
    assert fields_of("run", "mixture") == SHARED + SHARED_BY_MIXTURES  # in the error's order


def test_a_stages_record_has_every_field_that_is_not_operational_in_order() -> None:
    expected = {k: v for k, v in vars(SETTINGS).items() if k not in OPERATIONAL}
    assert list(stage_config(SETTINGS).items()) == list(expected.items())


def test_the_scopes_are_documented() -> None:
    """configuration.md says by its sections what may change: they hold these keys alone."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    sections = dict(section.split("\n", 1) for section in text.split("\n## ")[1:])
    keys = {
        name: set(re.findall(r"^\| `(.+?)`", body, re.MULTILINE)) for name, body in sections.items()
    }
    may_change = (keys["Which run"] | keys["Nodes and machine"] | {"checkpoint-every"}) - {"seed"}
    assert may_change == set(map(key_of, fields_of("operational")))
    assert keys["Model"] | {"seed", "evaluate-users", "wire-dtype"} == set(
        map(key_of, fields_of("run"))
    )
    assert keys["Memory"] | {"modalities"} == set(map(key_of, fields_of("mixture")))


def test_a_round_plan_says_what_the_settings_say() -> None:
    settings = replace(
        SETTINGS,
        seed=3,
        fraction_train=0.25,
        local_steps=4,
        client_learning_rate=0.5,
        weighting="uniform",
        dropout=0.125,
        dp_clip_norm=0.75,
    )
    plan = RoundPlan(2, 7, 3, 0.25, 4, 0.5, "uniform", 0.125, "app", "catalogue", clip_norm=0.75)
    assert settings.round_plan(2, 7, "app", "catalogue") == plan
    unasked = replace(plan, app_sha256="", catalogue_sha256="")
    assert settings.round_plan(2, 7) == unasked
    assert not unasked.private


def test_a_mixture_plan_says_what_the_settings_say() -> None:
    settings = replace(
        SETTINGS,
        memory_short_term=5,
        memory_long_term=6,
        memory_novelty=-1.0,
        memory_surprise=2.0,
        targets_per_user=8,
        negatives=9,
        id_dropout=0.1,
        content_dropout=0.2,
        alignment_weight=0.3,
        alignment_temperature=0.4,
        surprise_weight=0.5,
        balance_weight=0.6,
    )
    plan = MixturePlan("sha", 5, 6, 0.25, 2.0, 8, 9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert settings.mixing("sha", novelty=0.25) == plan


def test_settings_alone_build_plans() -> None:
    """Others change a plan that they got: a new field of it reaches all of them."""
    for path in sources():
        if path != ROOT / "shared_model" / "protocol" / "settings.py":
            assert not re.search(r"\b(Round|Mixture)Plan\(", path.read_text()), path
