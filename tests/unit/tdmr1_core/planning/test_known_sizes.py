"""The sizes of published models that ship as a file: complete, equal to what is measured, and used without torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from known_sizes import measure_parameters, measure_update, settings_of

from tdmr1_core.config_loading import resolve
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.planning.estimate import Planner, read_architecture
from tdmr1_core.planning.known_sizes import (
    inputs_hash,
    known_parameters,
    known_update,
    point_of,
    read_known_sizes,
)
from tdmr1_core.planning.published_configs import PUBLISHED

pytestmark = pytest.mark.unit

ENTRIES = {entry.name: entry for entry in BUILTIN_MODELS if entry.base in PUBLISHED}
REWARD = {"rewards": [{"name": "a"}]}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_published_model_is_known_at_its_default_settings(name):
    """`python benchmarks/known_sizes.py --changed` measures what is missing."""
    entry = ENTRIES[name]
    assert known_parameters(entry) is not None
    for recomputed in (False, True):
        config = resolve([entry.settings, REWARD, {"memory": {"gradient_checkpointing": recomputed}}])
        assert known_update(entry, point_of(config, entry, entry.rank)) is not None


def test_the_file_holds_nothing_else():
    known = {each["inputs"] for each in read_known_sizes()["models"].values()}
    assert known == {inputs_hash(entry) for entry in ENTRIES.values()}


@pytest.mark.parametrize("name", ["sd3.5-tdm", "z-image-turbo"])
def test_counted_again_the_parameters_are_the_same(name):
    entry = ENTRIES[name]
    architecture = read_architecture(entry, use_known=False)
    assert measure_parameters(entry, architecture) == known_parameters(entry)


@pytest.mark.parametrize(
    ("name", "number"), [("sd3.5-tdm", 3), pytest.param("z-image-turbo", 2, marks=pytest.mark.long)]
)
def test_measured_again_an_update_is_the_same(name, number):
    """One update of each model: recomputed for SD3.5, stored activations for Z-Image."""
    entry = ENTRIES[name]
    config = list(settings_of(entry))[number]
    known = known_update(entry, point_of(config, entry, entry.rank))
    assert known is not None
    measured = measure_update(entry, read_architecture(entry, use_known=False), config)
    assert known.bytes == pytest.approx(measured.bytes, rel=0.01)
    assert known.operations == pytest.approx(measured.operations, rel=0.01)
    assert replace(known, bytes=0, operations=0.0) == replace(measured, bytes=0, operations=0.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"targets": ("attn.to_q",)},
        {"max_sequence_length": 77},
        {"with_t5": False},
        {"base": "owner/other"},
    ],
)
def test_a_model_with_other_inputs_is_not_known(changed):
    assert known_parameters(replace(ENTRIES["sd3.5-tdm"], **changed)) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"height": 768}},
        {"model": {"rank": 16}},
        {"model": {"precision": "fp32"}},
        {"model": {"device": "cpu"}},
        {"generator": {"guidance_scale": 1.0}},
        {"generator": {"rl_cfg": 1.0}},
        {"generator": {"reward_scale": 0.0}},
        {"surrogate": {"reference": "ema"}},
    ],
)
def test_other_settings_are_not_known(changed):
    entry = ENTRIES["sd3.5-tdm"]
    config = resolve([entry.settings, REWARD, changed])
    assert known_update(entry, point_of(config, entry, config.model.rank or entry.rank)) is None


def test_a_plan_of_known_sizes_announces_no_work():
    announced: list[str] = []
    entry = ENTRIES["sd3.5-tdm"]
    planned = Planner(entry, announce=announced.append).plan(resolve([entry.settings, REWARD]))
    assert announced == []
    assert planned.parts["denoiser"] == 2 * 2469663936
    assert planned.rank == 32
