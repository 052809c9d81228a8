"""Settings: what each declares at its field, and what follows from that for a run's stages."""

import re
from dataclasses import fields
from typing import get_args

from server_app.app import _stage_config
from shared_model.protocol.config import default_config, key_of, parse_settings
from shared_model.protocol.rules import Scope, Setting
from shared_model.protocol.settings import DECLARED, Settings, fields_of
from tests.support.paths import ROOT

SETTINGS = parse_settings(default_config(ROOT / "pyproject.toml"))
OPERATIONAL = {"stage", "run", "home", "dataset", "redo", "round_timeout", "min_nodes"}
OPERATIONAL |= {"node_timeout", "min_participation", "checkpoint_every"}
OPERATIONAL |= {"users_per_batch", "device", "tensorboard"}
SHARED = ("seed", "hidden_size", "num_heads", "num_blocks", "max_length")
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
    assert list(_stage_config(SETTINGS).items()) == list(expected.items())


def test_the_scopes_are_documented() -> None:
    """configuration.md says by its sections what may change: they hold these keys alone."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    sections = dict(section.split("\n", 1) for section in text.split("\n## ")[1:])
    keys = {
        name: set(re.findall(r"^\| `(.+?)`", body, re.MULTILINE)) for name, body in sections.items()
    }
    may_change = (keys["Which run"] | keys["Nodes and machine"] | {"checkpoint-every"}) - {"seed"}
    assert may_change == set(map(key_of, fields_of("operational")))
    assert keys["Model"] | {"seed"} == set(map(key_of, fields_of("run")))
    assert keys["Memory"] | {"modalities"} == set(map(key_of, fields_of("mixture")))
