"""`tdmr1 doctor` with a model and rewards: what is missing here, and the command that provides it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from tdmr1_cli import needs
from tdmr1_cli.commands import doctor
from tdmr1_cli.main import main
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.weights import missing_weights
from tdmr1_rewards import registry
from tdmr1_rewards.builtin import optional, weights
from tdmr1_rewards.errors import Tdmr1Error

pytestmark = pytest.mark.unit

SD3 = "stabilityai/stable-diffusion-3.5-medium"


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine with an empty cache and no token; only the checks of the run are made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("tdmr1_core.models.hub.cached_snapshot", lambda repo, patterns: None)
    monkeypatch.setattr("tdmr1_core.preflight.weights.cached_snapshot", lambda repo, patterns: None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: None)
    monkeypatch.setattr(doctor, "CHECKS", ())


def findings(capsys, *arguments, code):
    assert main(["doctor", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def of_kind(found, what):
    return [each for each in found if each["what"] == what]


def test_weights_that_a_training_downloads_are_a_warning(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr(needs, "_memory", lambda *_: iter(()))
    found = of_kind(findings(capsys, "--model", "sd3.5-tdm", "--reward", "pickscore", code=0), "weights")
    assert {each["verdict"] for each in found} == {"warn"}
    assert {each["remedy"] for each in found} >= {
        f"hf download {SD3}",
        "hf download Luo-Yihong/TDM_sd3-5_lora tdm_sd3-5_lora.ckpt",
        "hf download yuvalkirstain/PickScore_v1",
    }


def test_a_gated_model_without_a_token_fails(capsys, monkeypatch):
    monkeypatch.setattr(needs, "_memory", lambda *_: iter(()))
    found = findings(capsys, "--model", "sd3.5-tdm", "--reward", "jpeg_size", code=1)
    (failed,) = [each for each in found if each["verdict"] == "fail"]
    assert "is gated" in failed["detail"]
    assert failed["remedy"].endswith(f"then `hf auth login`, hf download {SD3}")


def test_missing_weights_fail_without_the_hub(capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(needs, "_memory", lambda *_: iter(()))
    found = findings(capsys, "--model", "tiny-tdm", "--reward", "pickscore", code=1)
    assert [each["verdict"] for each in of_kind(found, "weights")] == ["fail", "fail", "ok"]


def test_packages_and_variables_are_named_with_the_command(capsys, monkeypatch):
    monkeypatch.setattr(needs, "_memory", lambda *_: iter(()))
    usual = registry.is_installed
    monkeypatch.setattr(registry, "is_installed", lambda name: name != "open_clip" and usual(name))
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    judge = ["rewards.1.options.base_url=http://127.0.0.1:1/v1", "rewards.1.options.model=m"]
    judge += ["rewards.1.options.api_key_env=JUDGE_KEY"]
    sets = [word for each in judge for word in ("--set", each)]
    arguments = ["--model", "tiny-tdm", "--reward", "aesthetic", "--reward", "vlm_judge", *sets]
    found = findings(capsys, *arguments, code=1)
    (package,), (variable,) = of_kind(found, "package"), of_kind(found, "environment variable")
    assert (package["verdict"], package["remedy"]) == ("fail", "pip install 'tdmr1[aesthetic]'")
    assert variable["remedy"].startswith("export JUDGE_KEY=")
    assert main(["doctor", *arguments]) == 1
    assert "to do:\n  pip install 'tdmr1[aesthetic]'\n" in capsys.readouterr().out


def test_a_machine_that_is_ready(capsys):
    found = findings(capsys, "--model", "tiny-tdm", "--reward", "object_count", code=0)
    assert {each["verdict"] for each in found} == {"ok"}
    assert {each["what"] for each in found} == {"training", "rewards", "weights", "memory", "disk"}


def test_a_full_disk_and_too_little_memory_fail(capsys, monkeypatch):
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    monkeypatch.setattr(needs.os, "sysconf", lambda _: 1000)
    found = findings(capsys, "--model", "tiny-tdm", "--reward", "object_count", code=1)
    assert [each["what"] for each in found if each["verdict"] == "fail"] == ["memory", "disk"]
    assert of_kind(found, "memory")[0]["remedy"].startswith("use a machine with a GPU")


def test_an_unknown_reward_is_an_error_of_the_command(capsys):
    assert main(["doctor", "--reward", "nosuch"]) == 2
    assert "[reward-unknown]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "roles"),
    [("sd3.5-tdm", ["base", "few-step LoRA"]), ("tiny-tdm", []), ("flux2-klein-4b", ["base", "teacher"])],
)
def test_every_source_of_a_model_is_looked_up(model, roles):
    entry = discover().models.get(model)
    assert [each.role for each in missing_weights(entry)] == roles
    assert all(each.command.startswith("hf download ") for each in missing_weights(entry))


def test_a_detector_is_needed_for_large_images_only():
    options = SimpleNamespace(detector="auto", colour_model="a/b")
    assert weights.of_object_count(options, 64) == weights.of_geneval(options, 64) == []
    assert [each.values["repo"] for each in weights.of_object_count(options, 512)] == ["PekingU/rtdetr_v2_r50vd"]
    assert len(weights.of_geneval(options, 512)) == 2
    options.detector = "blobs"
    assert weights.of_geneval(options, 512) == []


def test_local_weights_and_cached_ones_are_not_missing(tmp_path, monkeypatch):
    (tmp_path / "head.pth").touch()
    assert weights.of_hpsv2(SimpleNamespace(checkpoint=str(tmp_path / "head.pth")), 512) == []
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: asked.append((repo, name)) or "/x")
    assert weights.of_hpsv2(SimpleNamespace(checkpoint="a/b/c/d.pt"), 512) == []
    assert asked == [("a/b", "c/d.pt")]
    assert optional.is_cached("a/b")


def test_every_weight_function_of_a_built_in_reward_returns_errors():
    from tdmr1_rewards.builtin import SPECS
    from tdmr1_rewards.calling.reference import resolve

    named = [spec for spec in SPECS if spec.lacks]
    assert len(named) == 8
    for spec in named:
        assert callable(resolve(spec.lacks, spec.name))


def test_a_function_that_returns_something_else_is_refused(monkeypatch):
    from dataclasses import replace

    from tdmr1_rewards.sources.source import lacking

    found = discover().plugins.rewards.get("jpeg_size")
    wrong = replace(found, spec=replace(found.spec, lacks="builtins:max"))
    with pytest.raises(Tdmr1Error) as raised:
        lacking(wrong, 1, 2)
    assert raised.value.values["field"] == "lacks"
