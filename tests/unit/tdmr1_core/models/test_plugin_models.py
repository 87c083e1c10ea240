"""Families and models of plugins: how they are registered, and what is wrong with those that are not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.errors import raises
from support.plugin_folder import write_plugin

from tdmr1_core.models.families import FAMILIES, PIPELINES
from tdmr1_core.models.pipeline_files import family_of
from tdmr1_core.plugins import Extensions, discover

pytestmark = pytest.mark.unit

BUILTIN = set(FAMILIES)
PLUGIN = """
from tdmr1_core.models.families import Family
from tdmr1_core.models.registry import ModelEntry
from tdmr1_rewards import hookimpl

@hookimpl
def tdmr1_register_families(register):
    register(Family(
        name={family!r}, pipeline={pipeline!r}, transformer="Net", backbone="{module}:Net", module="{module}",
        targets=("to_q",), max_sequence_length=8, no_guidance=1.0, comfy_prefix=None, readers={{}},
    ))

@hookimpl
def tdmr1_register_models(register):
    register(ModelEntry(
        name={model!r}, summary="a test", family={used!r}, base="/nowhere", lora=None, domain="photo",
        height=32, width=32,
    ))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder on sys.path. Its modules and families are removed afterwards."""
    monkeypatch.delenv("TDMR1_DISABLE_PLUGINS", raising=False)
    before = set(sys.modules)
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    discover()
    assert set(FAMILIES) == BUILTIN


def add(folder: Path, name: str, **changes: str) -> None:
    """Install the distribution `name`, whose module registers a family and a model of this name."""
    values = {"family": name, "pipeline": f"{name.title()}Pipeline", "model": name, "module": name, **changes}
    write_plugin(folder, name, name, PLUGIN.format(**{"used": values["family"], **values}))


def error_of(found: Extensions, name: str) -> str | None:
    (record,) = [record for record in found.plugins.records if record.provenance.plugin == name]
    return record.error


def test_a_family_is_found_by_its_pipeline_class(folder, tmp_path):
    add(folder, "foo")
    found = discover()
    entry = found.models.get("foo")
    assert (entry.family, entry.distribution, FAMILIES["foo"].distribution) == ("foo", "foo 1.0", "foo 1.0")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model_index.json").write_text(json.dumps({"_class_name": "FooPipeline"}))
    assert family_of(str(tmp_path / "made")) is FAMILIES["foo"] is PIPELINES["FooPipeline"]
    discover()  # again
    assert error_of(found, "foo") is None


def test_a_disabled_plugin_adds_nothing(folder, tmp_path, monkeypatch):
    add(folder, "foo")
    discover()
    monkeypatch.setenv("TDMR1_DISABLE_PLUGINS", "foo")
    assert "foo" not in discover().models.names
    assert set(FAMILIES) == BUILTIN
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FooPipeline"}))
    with raises("model-unsupported", pipeline="FooPipeline"):
        family_of(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"family": "sd3"}, "'sd3' for FooPipeline conflicts with 'sd3' for StableDiffusion3Pipeline of tdmr1"),
        ({"pipeline": "FluxPipeline"}, "'foo' for FluxPipeline conflicts with 'flux1' for FluxPipeline of tdmr1"),
        ({"used": "bar"}, "registered the model 'foo' of the unknown family 'bar'"),
    ],
)
def test_a_plugin_with_a_conflict_gets_an_error_and_others_work(folder, changes, reason):
    before = dict(FAMILIES)
    add(folder, "foo", **changes)
    add(folder, "goo")
    found = discover()
    assert reason in error_of(found, "foo")
    assert error_of(found, "goo") is None
    assert "goo" in found.models.names
    assert {name: FAMILIES[name] for name in before} == before


def test_two_plugins_with_one_family_are_named(folder):
    add(folder, "foo", family="same")
    add(folder, "goo", family="same")
    found = discover()
    assert error_of(found, "foo") is None
    assert "'same' for GooPipeline conflicts with 'same' for FooPipeline of foo 1.0" in error_of(found, "goo")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def tdmr1_register_families(register): register('foo')", "registered a str, but must register a Family"),
        ("def tdmr1_register_families(register): 1 / 0", "tdmr1_register_families raised ZeroDivisionError"),
        ("def tdmr1_register_families(registry): pass", "could not be loaded"),
    ],
)
def test_a_broken_hook_is_an_error_of_its_plugin_only(folder, source, reason):
    write_plugin(folder, "foo", "foo", f"from tdmr1_rewards import hookimpl\n\n@hookimpl\n{source}\n")
    add(folder, "goo")
    found = discover()
    assert reason in error_of(found, "foo")
    assert found.models.get("goo").family == "goo"


def test_classes_that_a_plugin_lacks_are_named(folder):
    add(folder, "foo")
    discover()
    family = FAMILIES["foo"]
    for look_up in (family.backbone_class, lambda: family.find_class(family.pipeline)):
        with raises("model-invalid", family="foo", distribution="foo 1.0") as caught:
            look_up()
        assert "the module foo has no class" in caught.value.message
    (folder / "foo.py").unlink()
    del sys.modules["foo"]
    with raises("model-invalid", family="foo") as caught:
        family.backbone_class()
    assert "the module foo cannot be imported: ModuleNotFoundError" in caught.value.message
