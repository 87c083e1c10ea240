"""Which inputs of a moved run are named as missing, with the setting that has their path."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from support.errors import raises

from tdmr1_core.config_loading import Tree, dump, from_portable, parse_assignments, resolve, to_portable
from tdmr1_core.errors import RunWarning
from tdmr1_core.plugins import discover
from tdmr1_core.runs.checkpoints.changes import find_changes, refused_changes
from tdmr1_core.runs.checkpoints.run_config import load_changed_config, load_run_config
from tdmr1_core.runs.missing_inputs import (
    Needed,
    check_inputs,
    find_missing,
    needed_by_evaluation,
    needed_by_resume,
)

pytestmark = pytest.mark.unit

FOUND = discover()
SETTINGS = (
    "model.path=/old/base",
    "model.lora=/old/lora.safetensors",
    "model.teacher=/old/teacher",
    "prompts.train=/old/train.txt",
    "memory.prompt_cache=/dev/null/cache",
    "rewards=[{name: warm, source: '/old/warm.py:warm'}, {name: other, source: 'no_such_package.rewards:fn'},"
    " {name: no_such_reward}, {name: far, source: '/old/far.py:far', python: /old/python},"
    " {name: ocr_match, options: {model_storage_directory: /old/weights}},"
    " {name: human, options: {answers: [/old/answers]}}]",
    "guard.rewards=[{name: held, source: '/old/held.py:held'}]",
)
OF_RESUME = [
    "model.path",
    "model.lora",
    "model.teacher",
    "rewards.0.source",
    "rewards.1.source",
    "rewards.2.source",
    "rewards.3.source",
    "rewards.3.python",
    "rewards.4.options.model_storage_directory",
    "rewards.5.options.answers.0",
    "guard.rewards.0.source",
    "prompts.train",
    "prompts.evaluate",
    "memory.prompt_cache",
]
HEADER = {"prompts": {"the training": "a", "evaluations": "b"}, "rewards": {"no_such_reward": "a-package 1.2"}}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder whose inputs are gone, without checkpoints."""
    config = resolve([parse_assignments(SETTINGS)])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"tdmr1": HEADER, **dump(config)}))
    return tmp_path / "run"


def missing(run: Path, needed: Needed) -> list[str]:
    return [each.setting for each in find_missing(run, load_run_config(run), FOUND, needed)]


def test_a_resume_names_everything_at_once(run):
    config = load_run_config(run)
    assert missing(run, needed_by_resume(config)) == OF_RESUME
    with raises("file-missing", run=str(run)) as caught:
        check_inputs(run, config, FOUND, needed_by_resume(config))
    assert [each["setting"] for each in caught.value.values["missing"]] == OF_RESUME
    for part in ("--set model.path=", "rewards.0.source=NEW_FOLDER/warm.py:warm", "rewards.3.python=", "a-package 1.2"):
        assert part in caught.value.hint


def test_the_trained_weights_need_only_the_base_model(run):
    assert missing(run, Needed()) == ["model.path"]


@pytest.mark.parametrize(
    ("named", "prompts", "expected"),
    [
        (None, True, [name for name in OF_RESUME if name[:6] not in ("guard.", "memory") and ".5." not in name]),
        (None, False, [n for n in OF_RESUME if n[:6] not in ("guard.", "memory", "prompt") and ".5." not in n]),
        ({"warm"}, False, ["model.path", "model.lora", "model.teacher", "rewards.0.source"]),
        (set(), False, ["model.path", "model.lora", "model.teacher"]),
    ],
    ids=["the run's rewards and prompts", "given prompts", "one reward", "other rewards"],
)
def test_an_evaluation_needs_only_what_it_uses(run, named, prompts, expected):
    config = load_run_config(run)
    needed = needed_by_evaluation(config, FOUND.plugins.rewards, named, prompts=prompts)
    assert missing(run, needed) == expected


def test_nothing_is_missing_after_the_paths_are_set(run, tmp_path):
    for name in ("warm.py", "held.py", "train.txt", "test.txt", "lora.safetensors", "python"):
        (tmp_path / name).touch()
    changes = parse_assignments(
        [
            f"model.path={tmp_path}",
            f"model.lora={tmp_path}/lora.safetensors",
            "model.teacher=same",
            f"prompts.train={tmp_path}/train.txt",
            "memory.prompt_cache=null",
            f"rewards.0.source={tmp_path}/warm.py:warm",
            f"rewards.1.source={tmp_path}/warm.py:fn",
            "rewards.2.source=object_count",
            f"rewards.3.source={tmp_path}/warm.py:far",
            f"rewards.3.python={tmp_path}/python",
            f"rewards.4.options.model_storage_directory={tmp_path}",
            f"rewards.5.options.answers.0={tmp_path}",
            f"guard.rewards.0.source={tmp_path}/held.py:held",
        ]
    )
    config = load_run_config(run, changes)
    check_inputs(run, config, FOUND, needed_by_resume(config))
    (tmp_path / "test.txt").unlink()
    assert [each.setting for each in find_missing(run, config, FOUND, needed_by_resume(config))] == ["prompts.evaluate"]


def test_a_text_option_that_was_no_path_is_not_missing(run):
    """Only an option that named a file at the start of the run, or is declared as a path, may be missing."""
    tree: Tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["rewards"][0]["options"] = {"question": "/is this warm?", "weights": "/old/head.pt"}
    tree["tdmr1"]["options"] = {"rewards.0.options.weights": "folder"}
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    found = missing(run, needed_by_resume(load_run_config(run)))
    assert [name for name in found if name.startswith("rewards.0.options")] == ["rewards.0.options.weights"]


@pytest.mark.parametrize("name", ["/old/base", "owner/name"])
def test_the_directory_of_an_unregistered_model_may_move(run, name):
    former = resolve([parse_assignments(["rewards=[{name: object_count}]", f"model.name={name}"])])
    for setting, allowed in ({"model.name=/new/base": True, "model.name=tiny-tdm": False, "seed=4": False}).items():
        config = resolve([dump(former), parse_assignments([setting])])
        assert (refused_changes(find_changes(dump(former), dump(config)), former, config) == {}) is allowed


def test_a_command_that_uses_a_run_refuses_settings_that_the_run_keeps(run):
    with raises("option-conflict", settings=["rollout.steps"]):
        load_changed_config(run, parse_assignments(["rollout.steps=8", "model.path=/new/base"]))


def test_a_path_inside_the_run_folder_moves_with_it(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    settings = {"cache": f"{first}/cache", "other": f"{first}-2/cache", "list": [str(first)], "number": 3}
    stored = to_portable(settings, first)
    assert stored == {"cache": "${run}/cache", "other": f"{first}-2/cache", "list": ["${run}"], "number": 3}
    assert from_portable(stored, first) == settings
    assert from_portable(stored, second)["cache"] == f"{second}/cache"


def test_a_copied_run_names_the_copy_of_a_folder_inside_it(run, tmp_path):
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["memory"]["prompt_cache"] = "${run}/cache"
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    assert load_run_config(copy).memory.prompt_cache == copy / "cache"


def test_only_a_warning_if_no_missing_input_is_required_for_certain(tmp_path):
    """Only the reward knows whether it still needs a file that a text option named at the start of the run."""
    settings = ["rewards=[{name: jpeg_size}]", "model.name=tiny-tdm", "prompts.train=count", "prompts.evaluate=count"]
    tree = {"tdmr1": {"options": {"rewards.0.options.log": "folder"}}, **dump(resolve([parse_assignments(settings)]))}
    tree["rewards"][0] |= {"source": "os.path:join", "options": {"log": "/old/log"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    config = load_run_config(tmp_path)
    with pytest.warns(RunWarning, match="/old/log") as warned:
        check_inputs(tmp_path, config, FOUND, needed_by_resume(config))
    assert [(each.message.code, each.message.values["setting"]) for each in warned] == [
        ("file-missing", "rewards.0.options.log")
    ]
