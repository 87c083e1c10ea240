import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from support.errors import raises

from tdmr1_core.build.rewards import build_runner
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.registry import ModelRegistry
from tdmr1_core.plugins import Extensions, discover
from tdmr1_core.preflight.layers import Flags, parse_reward, resolve_settings
from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.calling.import_file import private_name
from tdmr1_rewards.registry import Provenance, RewardRegistry

pytestmark = pytest.mark.unit


class PluginsWithRewards:
    """The part of `Plugins` that settings use."""

    def __init__(self, **presets):
        origin = Provenance("test", "test", "1", "test")
        specs = [
            RewardSpec(
                name=n,
                summary="",
                factory="a:b",
                options="support.any_options:AnyOptions",
                default_prompts={"object_count": "count", "geneval": "geneval", "ocr_match": "ocr"}.get(n, ""),
                default_preset=p,
            )
            for n, p in presets.items()
        ]
        self.rewards = RewardRegistry((spec, origin) for spec in specs)


@pytest.fixture
def extensions():
    """The built-in models, and some rewards."""
    rewards = {"object_count": "tiny", "legible": "ocr", "geneval": "geneval", "ocr_match": "ocr"}
    return Extensions(PluginsWithRewards(**rewards), ModelRegistry(BUILTIN_MODELS))


@pytest.fixture
def photo_model(tmp_path):
    """A pipeline directory. It has no default reward and no default preset."""
    folder = tmp_path / "photo"
    configs = {
        "model_index.json": '{"_class_name": "StableDiffusion3Pipeline"}',
        "transformer/config.json": '{"sample_size": 64}',
        "vae/config.json": '{"block_out_channels": [1, 1, 1, 1]}',
        "scheduler/scheduler_config.json": "{}",
    }
    for name, text in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def write(folder, text):
    """A config file."""
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_without_arguments_the_embedded_model_is_trained(extensions):
    settings = resolve_settings(Flags(), "train", extensions)
    assert (settings.config.model.name, settings.preset) == ("tiny-tdm", "tiny")
    assert [reward.name for reward in settings.config.rewards] == ["object_count"]


def test_each_layer_overrides_the_one_before(extensions, tmp_path):
    path = write(tmp_path, "iterations: 7\nseed: 7\nbatch: {groups: 7, group_size: 7}\n")
    flags = Flags(config=path, seed=8, iterations=8, sets=["iterations=9"])
    config = resolve_settings(flags, "train", extensions).config
    assert (config.iterations, config.seed, config.batch.groups) == (9, 8, 7)
    assert config.surrogate.boundary == "last"  # the preset's


def test_a_file_keeps_the_preset_of_the_model_unless_it_is_none(extensions, tmp_path):
    path = write(tmp_path, "seed: 7\n")
    assert resolve_settings(Flags(config=path), "train", extensions).preset == "tiny"
    settings = resolve_settings(Flags(config=path, preset="none"), "train", extensions)
    assert settings.preset is None
    assert settings.config.batch.groups == 48


def test_the_config_of_an_earlier_run_means_what_it_did(extensions, tmp_path):
    """The header shows that the file is the config.yaml of a run. Options still override it."""
    text = "rollout: {sampler: dpm-solver++}\n"
    levels = [
        resolve_settings(
            Flags(config=write(tmp_path, content), sets=sets), "train", extensions
        ).config.rollout.dpm_levels
        for content, sets in (
            (text, ()),
            (f"tdmr1: {{}}\n{text}", ()),
            (f"tdmr1: {{}}\n{text}", ["rollout.dpm_levels=scheduler"]),
        )
    ]
    assert levels == ["scheduler", "euler", "scheduler"]


@pytest.mark.parametrize("preset", ["imagereward", None])
def test_the_preset_imagereward_and_its_reward_name_each_other(photo_model, preset):
    """With the built-in rewards and a model that has neither a default reward nor a default preset."""
    flags = Flags(model=str(photo_model), preset=preset, rewards=[] if preset else ["imagereward"])
    settings = resolve_settings(flags, "train", discover())
    (trained,), config = settings.config.rewards, settings.config
    assert (settings.preset, trained.name, trained.source, trained.options) == ("imagereward", "imagereward", None, {})
    assert config.evaluation.rewards == ()  # evaluations use the trained reward
    assert (config.batch.groups, config.surrogate.tau_min, config.generator.trunc_steps) == (24, 0.55, 2)
    assert settings.prompts.name == "scenes"


def test_another_reward_replaces_that_of_the_preset(extensions, tmp_path):
    (tmp_path / "mine.py").write_text("def score(images, prompts):\n    return [0.0] * len(images)\n")
    for reward in ("legible", f"imagereward={tmp_path / 'mine.py'}:score"):
        settings = resolve_settings(Flags(preset="imagereward", rewards=[reward]), "train", extensions)
        (trained,) = settings.config.rewards
        assert (settings.preset, trained.name) == ("imagereward", reward.partition("=")[0])
        assert settings.config.surrogate.tau_min == 0.55


def test_the_reward_gives_the_preset_if_the_model_has_none(extensions, photo_model):
    settings = resolve_settings(
        Flags(model=str(photo_model), rewards=["legible:2"], prompts="ocr"), "train", extensions
    )
    assert settings.preset == "ocr"
    assert settings.config.rewards[0].weight == 2


def test_a_published_model_and_a_reward_are_a_complete_command(extensions):
    settings = resolve_settings(Flags(model="sd3.5-tdm", rewards=["legible"], prompts="ocr"), "train", extensions)
    assert (settings.preset, settings.entry.base) == ("ocr", "stabilityai/stable-diffusion-3.5-medium")
    assert (settings.config.model.precision, settings.config.batch.groups) == ("bf16", 48)
    assert settings.entry.domain == "photo"
    flags = Flags(model="sd3.5-tdm", rewards=["legible"], prompts="ocr", sets=["model.precision=fp32"])
    assert resolve_settings(flags, "train", extensions).config.model.precision == "fp32"


def test_a_guidance_distilled_teacher_is_not_guided_again(extensions):
    flags = Flags(model="z-image-turbo", rewards=["legible"], prompts="ocr")
    own = resolve_settings(flags, "train", extensions).config.generator
    assert (own.guidance_scale, own.rl_cfg) == (1.0, 1.0)
    other = resolve_settings(replace(flags, sets=["model.teacher=Tongyi-MAI/Z-Image"]), "train", extensions)
    assert (other.config.generator.guidance_scale, other.config.generator.rl_cfg) == (4.5, 4.5)
    assert other.entry.teacher == "Tongyi-MAI/Z-Image"


def test_a_model_without_a_published_lora_needs_one_for_training_only(extensions):
    flags = Flags(model="sd3.5-large-tdm", rewards=["legible"], prompts="ocr")
    with raises("lora-missing"):
        resolve_settings(flags, "train", extensions)
    assert resolve_settings(replace(flags, lora=Path("mine.safetensors")), "train", extensions).entry.adapter_scale == 1
    resolve_settings(Flags(model="sd3.5-large-tdm", prompts="ocr"), "distill", extensions)


def test_a_model_without_a_reward_needs_one(extensions, photo_model):
    with raises("setting-invalid"):
        resolve_settings(Flags(model=str(photo_model)), "train", extensions)


def test_a_reward_that_the_preset_does_not_evaluate_scores_evaluations_itself(extensions):
    own = resolve_settings(Flags(), "train", extensions).config
    other = resolve_settings(Flags(rewards=["legible"]), "train", extensions).config
    assert [reward.options for reward in own.evaluation.rewards] == [{"score": "exact"}]
    assert other.evaluation.rewards == ()


def test_a_weight_keeps_the_options_of_the_file(extensions, tmp_path):
    path = write(tmp_path, "rewards: [{name: object_count, options: {score: exact}}]\n")
    (reward,) = resolve_settings(Flags(config=path, rewards=["object_count:3"]), "train", extensions).config.rewards
    assert (reward.weight, reward.options) == (3, {"score": "exact"})


def test_an_option_of_the_default_reward(extensions):
    config = resolve_settings(Flags(sets=["rewards.0.options.score=exact"]), "train", extensions).config
    assert config.rewards[0].options == {"score": "exact"}


def test_a_distillation_has_its_own_preset_and_no_reward(extensions, tmp_path):
    settings = resolve_settings(Flags(), "distill", extensions)
    assert (settings.preset, settings.config.rewards) == ("distill-tiny", ())
    with raises("wrong-kind", found="distill", expected="train") as caught:
        resolve_settings(Flags(config=write(tmp_path, "kind: distill\n")), "train", extensions)
    assert "tdmr1 distill" in caught.value.hint


def test_paths_are_kept_absolute(extensions, photo_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("two red circles")
    flags = Flags(model_path=Path("photo"), lora=Path("lora"), prompts="mine.txt")
    config = resolve_settings(flags, "train", extensions).config
    assert config.model.path == photo_model
    assert config.model.lora == tmp_path / "lora"
    assert config.prompts.train == str(tmp_path / "mine.txt")


def test_an_unknown_evaluation_reward_is_reported(extensions):
    with raises("reward-unknown"):
        resolve_settings(Flags(sets=["evaluation.rewards=[{name: object_cuont}]"]), "train", extensions)


@pytest.mark.parametrize("text", ["model: 3", "rewards: 3", "rewards: [3]", "evaluation: []", "kind: 3", "batch: [1]"])
def test_settings_of_a_wrong_shape_are_rejected(extensions, tmp_path, text):
    with pytest.raises(Tdmr1Error):
        resolve_settings(
            Flags(config=write(tmp_path, text), rewards=["legible"] if "rewards" not in text else ()),
            "train",
            extensions,
        )


@pytest.mark.parametrize(
    ("text", "name", "source", "weight"),
    [
        ("a", "a", None, 1),
        ("a:-0.5", "a", None, -0.5),
        ("a:1e-3", "a", None, 0.001),
        ("a:.5", "a", None, 0.5),
        ("a=a", "a", None, 1),
        ("nice=a", "nice", "a", 1),
        ("nice=a:2", "nice", "a", 2),
        ("file.py:fn", "fn", "/here/file.py:fn", 1),
        ("file.py:fn:0.5", "fn", "/here/file.py:fn", 0.5),
        ("/a/b c/file-2.py:MyReward:3", "my_reward", "/a/b c/file-2.py:MyReward", 3),
        ("../file.py:Holder.fn", "fn", "/here/../file.py:Holder.fn", 1),
        ("nice=file.py:fn:2", "nice", "/here/file.py:fn", 2),
        ("./a=b/file.py:fn", "fn", "/here/a=b/file.py:fn", 1),
        ("package.module:fn", "fn", "package.module:fn", 1),
        ("package.module:fn:0.25", "fn", "package.module:fn", 0.25),
        ("module:fn", "fn", "module:fn", 1),
        ("my-name=module:fn", "my-name", "module:fn", 1),
        ("remote:http://127.0.0.1:8000/ocr_match", "ocr_match", "remote:http://127.0.0.1:8000/ocr_match", 1),
        ("remote:http://127.0.0.1:8000/ocr_match:0.5", "ocr_match", "remote:http://127.0.0.1:8000/ocr_match", 0.5),
        ("far=remote:https://host/x/y:0.5", "far", "remote:https://host/x/y", 0.5),
        ("remote:http://[::1]:8000/ocr", "ocr", "remote:http://[::1]:8000/ocr", 1),
        ("remote:http://a:1/x,http://b:2/x:0.5", "x", "remote:http://a:1/x,http://b:2/x", 0.5),
    ],
)
def test_a_reward_with_its_source_and_weight(monkeypatch, text, name, source, weight):
    monkeypatch.setattr(Path, "absolute", lambda path: path if path.is_absolute() else Path("/here") / path)
    reward = parse_reward(text)
    assert (reward.name, reward.source, reward.weight) == (name, source, weight)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a:", "argument-invalid"),
        ("a:5x", "argument-invalid"),
        ("a.py:fn:heavy", "argument-invalid"),
        ("a.py:fn:nan", "argument-invalid"),
        ("a.py:fn:inf", "argument-invalid"),
        ("a.py", "reward-source"),
        ("a.py:0.5", "reward-source"),
        ("remote:http://127.0.0.1:8000", "reward-source"),
        ("remote:ftp://host/x", "reward-source"),
        ("a:b:c:1", "reward-source"),
        ("", "reward-source"),
    ],
)
def test_a_reward_of_no_known_form_is_rejected_with_a_hint(text, code):
    with raises(code) as caught:
        parse_reward(text)
    assert caught.value.hint


REWARDS = """
def bright(images, prompts, metadata):
    return [0.0] * len(images), {}
"""


def test_a_reward_of_a_file_is_kept_with_its_absolute_path(extensions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(REWARDS)
    flags = Flags(rewards=["mine.py:bright:0.5"], sets=["evaluation.rewards=[{name: b, source: 'mine.py:bright'}]"])
    config = resolve_settings(flags, "train", extensions).config
    (reward,), (judge,) = config.rewards, config.evaluation.rewards
    assert (reward.name, reward.source, reward.weight) == ("bright", f"{tmp_path}/mine.py:bright", 0.5)
    assert (judge.name, judge.source) == ("b", f"{tmp_path}/mine.py:bright")


def test_a_weight_keeps_the_source_of_the_file(extensions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(REWARDS)
    path = write(tmp_path, "rewards: [{name: b, source: 'mine.py:bright', options: {image_format: pil}}]\n")
    (reward,) = resolve_settings(Flags(config=path, rewards=["b:3"]), "train", extensions).config.rewards
    assert (reward.source, reward.weight) == (f"{tmp_path}/mine.py:bright", 3)
    assert reward.options == {"image_format": "pil"}


def test_all_sources_that_do_not_exist_are_reported_together(extensions, tmp_path):
    flags = Flags(rewards=["no_module_19:fn", f"{tmp_path}/no.py:other", "legible:heavy"])
    with raises("several-errors") as caught:
        resolve_settings(flags, "train", extensions)
    codes = [error["code"] for error in caught.value.values["errors"]]
    assert sorted(codes) == ["reward-import", "reward-import", "reward-source"]


def test_a_reward_without_prompts_uses_the_first_set_of_the_domain(extensions, tmp_path):
    (tmp_path / "mine.py").write_text(REWARDS)
    rewards = [f"{tmp_path}/mine.py:bright"]
    assert resolve_settings(Flags(rewards=rewards), "train", extensions).prompts.name == "count"
    assert resolve_settings(Flags(rewards=["legible", *rewards]), "train", extensions).prompts.name == "count"
    assert resolve_settings(Flags(rewards=rewards, prompts="pairs"), "train", extensions).prompts.name == "pairs"


def test_a_reward_without_prompts_and_a_domain_without_sets_is_rejected(extensions, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(REWARDS)
    monkeypatch.setattr("tdmr1_core.preflight.resolved.PROMPT_SETS", {})
    with raises("prompts-missing", reward="bright", domain="tiny") as caught:
        resolve_settings(Flags(rewards=[f"{tmp_path}/mine.py:bright"]), "train", extensions)
    assert "--prompts" in caught.value.hint


READING = {"engine": "rapidocr", "detect": False, "upscale": 4, "threads": 1}
"""The OCR options of the preset tiny-words."""


@pytest.mark.parametrize(
    "typed",
    [
        Flags(),
        Flags(rewards=["ocr_match"]),
        Flags(rewards=["ocr_match:0.5"]),
        Flags(rewards=["legible", "ocr_match"]),
    ],
)
def test_a_reward_keeps_the_options_of_the_models_preset(extensions, typed):
    flags = replace(typed, model="tiny-words-tdm")
    settings = resolve_settings(flags, "train", extensions)
    rewards = {reward.name: reward.options for reward in settings.config.rewards}
    assert (settings.preset, rewards["ocr_match"]) == ("tiny-words", READING)
    assert rewards.get("legible", {}) == {}


PUBLISHED = {"score": "published", "repeated_classes": "independent"}
"""The options of the reward in the preset geneval."""


@pytest.mark.parametrize(
    ("typed", "options", "evaluated"),
    [
        (Flags(model="sd3.5-tdm", rewards=["geneval"]), PUBLISHED, ["geneval"]),
        (Flags(model="sd3.5-tdm", rewards=["geneval"], preset="geneval"), PUBLISHED, ["geneval"]),
        (Flags(model="sd3.5-tdm", preset="geneval"), PUBLISHED, ["geneval"]),
        (Flags(model="sd3.5-tdm", rewards=["geneval"], preset="none"), {}, []),
        (Flags(model="sd3.5-tdm", rewards=["geneval", "legible"], preset="geneval"), PUBLISHED, []),
        (Flags(rewards=["geneval"], preset="geneval"), PUBLISHED, ["geneval"]),
        (Flags(rewards=["geneval"]), {}, ["geneval"]),  # tiny-geneval
        (Flags(model="tiny-pairs-tdm"), {}, ["geneval"]),
    ],
)
def test_the_preset_geneval_sets_the_published_score(extensions, typed, options, evaluated):
    config = resolve_settings(typed, "train", extensions).config
    assert config.rewards[0].name == "geneval"
    assert config.rewards[0].options == options
    assert [reward.name for reward in config.evaluation.rewards] == evaluated
    assert all(reward.options["score"] == "strict" for reward in config.evaluation.rewards)


def test_another_reward_replaces_the_one_of_the_preset(extensions):
    config = resolve_settings(Flags(rewards=["object_count"], preset="geneval"), "train", extensions).config
    assert [(reward.name, reward.options) for reward in config.rewards] == [("object_count", {})]
    assert config.evaluation.rewards == ()


def test_the_settings_of_an_older_run_keep_their_score(extensions, tmp_path):
    """The config.yaml of a run lists the options that were given, and not the defaults of the reward."""
    path = write(tmp_path, "model: {name: sd3.5-tdm}\nrewards: [{name: geneval, weight: 1.0, options: {}}]\n")
    (reward,) = resolve_settings(Flags(config=path), "train", extensions).config.rewards
    assert reward.options == {}


def test_a_file_that_names_the_reward_keeps_the_options_of_the_preset(extensions, tmp_path):
    path = write(tmp_path, "model: {name: tiny-words-tdm}\nrewards: [{name: ocr_match, weight: 2.0}]\n")
    (reward,) = resolve_settings(Flags(config=path), "train", extensions).config.rewards
    assert (reward.weight, reward.options) == (2.0, READING)
    path = write(tmp_path, "model: {name: tiny-words-tdm}\nrewards: [{name: ocr_match, options: {upscale: 8}}]\n")
    (reward,) = resolve_settings(Flags(config=path), "train", extensions).config.rewards
    assert reward.options == {"upscale": 8}


@pytest.mark.parametrize(
    ("model", "rewards", "judges"),
    [
        ("tiny-tdm", [], {"object_count": "exact"}),
        ("tiny-tdm", ["counting=object_count"], {"object_count": "exact"}),
        ("tiny-tdm", ["geneval"], {"geneval": "strict"}),
        ("tiny-tdm", ["geneval", "object_count"], {}),
        ("tiny-tdm", ["legible"], {}),
        ("tiny-tdm", ["legible", "object_count"], {}),
        ("tiny-words-tdm", [], {"ocr_match": None, "exact": "exact"}),
        ("tiny-words-tdm", ["legible"], {}),
    ],
)
def test_evaluations_score_what_is_trained(extensions, model, rewards, judges):
    config = resolve_settings(Flags(model=model, rewards=rewards), "train", extensions).config
    assert {judge.name: judge.options.get("score") for judge in config.evaluation.rewards} == judges


def test_a_file_for_another_environment_is_not_loaded_here(extensions, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(REWARDS)
    reward = f"{{name: b, source: '{mine}:bright', python: {sys.executable}}}"
    path = write(tmp_path, f"rewards: [{reward}]\nevaluation: {{rewards: [{reward}]}}\n")
    resolved = resolve_settings(Flags(config=path), "train", extensions)
    assert resolved.prompts.name == "count"
    with ExitStack() as closing:
        build_runner(resolved.rewards, closing, device="cpu")
    assert private_name(mine) not in sys.modules
