"""The commands of `tdmr1 rewards`, called in this process. Tests with real processes are in tests/integration."""

import json
import os
import sys
import textwrap

import numpy as np
import pytest
import yaml
from PIL import Image
from support.code_length import code_lines
from support.errors import raises

from tdmr1_cli.commands.rewards.boxes import draw_boxes
from tdmr1_cli.commands.rewards.common import parse_options
from tdmr1_cli.main import main

pytestmark = pytest.mark.unit

MINE = """
    from pydantic import Field
    from tdmr1_rewards import RewardBatch, RewardOptions, RewardResult


    class Options(RewardOptions):
        threshold: float = Field(0.5, description="where red begins")
        words: tuple[str, ...] = ("a", "b")


    class RedBoxes:
        '''How much of the image is red.'''

        def __init__(self, options: Options) -> None:
            self.threshold = options.threshold

        def __call__(self, batch: RewardBatch) -> RewardResult:
            scores, details = [], []
            for image, prompt, metadata in zip(batch.images, batch.prompts, batch.metadata):
                width, height = image.size
                red = image.getpixel((0, 0))[0] / 255
                scores.append(None if metadata.get("hard") else red)
                box = {"box": [1, 1, width - 2, height - 2], "label": "red", "score": red}
                found = {"read": prompt.upper(), "ratio": red}
                details.append(found | ({"boxes": [box]} if red > self.threshold else {}))
            return RewardResult(scores, details)


    def peers(images, prompts, metadata, scale=2.0):
        return [scale * float(image.mean()) for image in images], {}


    def wavers(images, prompts, metadata, calls=[]):
        calls.append(1)
        return [float(len(calls)) for _ in images], {}
"""


@pytest.fixture(autouse=True)
def restored_environment(monkeypatch):
    """Undo changes of the environment that main makes."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(MINE))
    return path


@pytest.fixture
def images(tmp_path):
    """Files of a red image and of a darker one of another size."""
    paths = [tmp_path / "red.png", tmp_path / "dark.jpg"]
    Image.new("RGB", (40, 30), (255, 0, 0)).save(paths[0])
    Image.new("RGB", (20, 20), (51, 51, 51)).save(paths[1], quality=100)
    return [str(path) for path in paths]


@pytest.fixture
def run(capsys):
    """`run(*arguments, code=0)` runs a command and returns its stdout and stderr."""

    def run(*arguments, code=0):
        assert main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
        return capsys.readouterr()

    return run


def test_a_reward_in_a_file_scores_images(run, mine, images, tmp_path):
    source = f"{mine}:RedBoxes"
    done = run("rewards", "try", source, *images, "--prompt", "hello", "--save", tmp_path / "boxes")
    assert 'read: "HELLO"; ratio: 1; boxes: 1 (red)' in " ".join(done.out.split())
    assert "0.2" in done.out
    assert "used as" in done.err
    saved = tmp_path / "boxes" / "000-red.png"
    assert f"saved {saved}" in done.err
    assert list((tmp_path / "boxes").iterdir()) == [saved]
    assert Image.open(saved).size == (360, 270)


def test_try_with_json_output_several_prompts_options_and_metadata(run, mine, images):
    arguments = [
        "--prompt",
        "a",
        "--prompt",
        "b",
        "--option",
        "threshold=0.1",
        "--metadata",
        '{"hard": true}',
        "--json",
    ]
    document = json.loads(run("rewards", "try", f"{mine}:RedBoxes", *images, *arguments).out)
    assert document["reward"] == "red_boxes"
    assert [image["prompt"] for image in document["images"]] == ["a", "b"]
    assert [image["score"] for image in document["images"]] == [None, None]
    assert document["images"][1]["details"]["boxes"] == [{"box": [1, 1, 18, 18], "label": "red", "score": 0.2}]


def test_try_reports_missing_scores_and_missing_boxes(run, mine, images):
    done = run("rewards", "try", f"{mine}:RedBoxes", images[0], "--metadata", '{"hard": 1, "prompt": "sign"}')
    assert "no score" in done.out
    assert '"SIGN"' in done.out
    assert "--save DIR" in done.err
    done = run("rewards", "try", f"{mine}:RedBoxes", images[1], "--save", "nowhere")
    assert "no boxes" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--metadata", "{"], "argument-invalid", "--metadata"),
        (["--metadata", "[]"], "argument-invalid", "--metadata"),
        (["--prompt", "a", "--prompt", "b"], "argument-invalid", "2 prompts for 1 images"),
        (["--option", "threshold"], "argument-invalid", "'threshold'"),
        (["--option", "treshold=1"], "reward-options", "'treshold'"),
    ],
)
def test_wrong_arguments_of_try(run, mine, images, arguments, code, named):
    error = run("rewards", "try", f"{mine}:RedBoxes", images[0], *arguments, code=2).err
    assert f"[{code}]" in error
    assert named in error


def test_a_missing_image_and_a_file_that_is_not_an_image_are_errors(run, mine, tmp_path):
    assert "[file-missing]" in run("rewards", "try", f"{mine}:RedBoxes", tmp_path / "no.png", code=2).err
    assert "[file-unreadable]" in run("rewards", "try", f"{mine}:RedBoxes", mine, code=2).err


def test_a_reward_with_a_missing_dependency(run, tmp_path):
    path = tmp_path / "needy.py"
    path.write_text(
        "from tdmr1_rewards import RewardSpec\n"
        "SPEC = RewardSpec(name='needy', summary='', factory='needy:N', default_prompts='',\n"
        "                  requires=('no_such_30|no_such_31',), install='needy[all]')\n"
    )
    done = run("rewards", "check", f"{path}:SPEC", code=2)
    assert "[dependency-missing]" in done.err
    assert "no_such_30 or no_such_31" in done.err
    assert "pip install 'needy[all]'" in done.err
    assert "no, needs no_such_30" in run("rewards", "info", f"{path}:SPEC").out


def test_check_reports_whether_a_reward_is_suitable(run, mine):
    done = run("rewards", "check", f"{mine}:peers", "--option", "scale=3.0", "--json")
    assert json.loads(done.out)["fit"]
    assert "peers(images, prompts, metadata, scale)" in done.err
    done = run("rewards", "check", f"{mine}:wavers", "--json", code=1)
    document = json.loads(done.out)
    assert not document["fit"]
    assert {check["name"]: check["outcome"] for check in document["checks"]}["determinism"] == "failed"


def test_info_of_a_file_shows_how_to_use_it(run, mine):
    source = f"{mine}:RedBoxes"
    done = run("rewards", "info", source)
    assert "How much of the image is red." in done.out
    assert "where red begins" in done.out
    assert f"tdmr1 train --reward {source} --set rewards.0.options.threshold=0.5" in done.out
    document = json.loads(run("rewards", "info", source, "--json").out)
    expected = {
        "name": "red_boxes",
        "source": source,
        "weight": 1.0,
        "options": {"threshold": 0.5, "words": ["a", "b"]},
    }
    assert document["config"] == {"rewards": [expected]}
    assert document["usable"]
    shown = done.out[done.out.index("rewards:\n") :]
    assert yaml.safe_load(shown) == document["config"]


def test_info_of_a_foreign_function_lists_its_parameters(run, mine):
    document = json.loads(run("rewards", "info", f"{mine}:peers", "--json").out)
    assert [(item["name"], item["default"]) for item in document["option_list"]] == [("scale", 2.0)]
    assert document["taken_as"].startswith("a flow_grpo-style function")


def test_options_are_read_as_yaml():
    assert parse_options(["a=1", "b=[x, y]", "c=", "d=e=f"]) == {"a": 1, "b": ["x", "y"], "c": None, "d": "e=f"}
    with raises("argument-invalid", argument="--option", value="a=["):
        parse_options(["a=["])
    assert parse_options(["a=1", "a=1"]) == {"a": 1}
    with raises("argument-invalid", value="a=2"):
        parse_options(["a=1", "b=1", "a=2"])


def test_boxes_are_drawn_at_their_coordinates():
    image = np.full((300, 400, 3), 255, np.uint8)
    drawn = draw_boxes(image, [{"box": [250, 50, 350, 150], "label": "dog", "score": 0.5}, {"box": (60, 200, 10, 250)}])
    changed = np.argwhere((np.asarray(drawn) != 255).any(-1))
    assert changed.min(0).tolist() == [50, 10]
    assert changed.max(0).tolist() == [250, 350]
    assert (image == 255).all()
    for wrong in ({"label": "dog"}, {"box": [1, 2, 3]}, {"box": ["a"] * 4}):
        with raises("reward-result", entry=repr(wrong)):
            draw_boxes(image, [wrong])


def test_a_new_package_is_short_and_the_next_commands_are_printed(run, tmp_path):
    folder = tmp_path / "made"
    done = run("rewards", "new", "My-reward", "--output", folder)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "pyproject.toml",
        "src/my_reward/__init__.py",
        "src/my_reward/examples.py",
        "tests/test_reward.py",
    ]
    assert sorted(done.out.split()) == sorted(str(folder / name) for name in files)
    assert f"pip install -e '{folder}[dev]'" in done.err
    module = (folder / "src/my_reward/__init__.py").read_text()
    assert "class MyReward:" in module
    assert 10 <= code_lines(module) <= 20
    assert not any("$" in (folder / name).read_text() for name in files)
    assert "[file-exists]" in run("rewards", "new", "My-reward", "--output", folder, code=2).err


@pytest.mark.parametrize(
    ("name", "code", "named"),
    [
        ("2d", "argument-invalid", "'2d'"),
        ("a/b", "argument-invalid", "'a/b'"),
        ("class", "argument-invalid", "'class'"),
        ("object-count", "reward-name-conflict", "a reward named 'object_count'"),
        ("json", "reward-name-conflict", "a Python module named 'json'"),
    ],
)
def test_names_that_are_invalid_or_in_use(run, tmp_path, name, code, named):
    error = run("rewards", "new", name, "--output", tmp_path / "made", code=2).err
    assert f"[{code}]" in error
    assert named in error
    assert not (tmp_path / "made").exists()


def test_the_new_package_passes_the_check(run, tmp_path, monkeypatch):
    run("rewards", "new", "stands-out", "--output", tmp_path / "made")
    monkeypatch.syspath_prepend(tmp_path / "made" / "src")
    path = tmp_path / "spec.py"
    path.write_text("import stands_out\nfound = []\nstands_out.tdmr1_register_rewards(found.append)\n(SPEC,) = found\n")
    done = run("rewards", "check", f"{path}:SPEC")
    assert "stands_out is suitable for training" in done.out
    assert "4 of 4 pairs of a good and a bad example are ranked correctly" in done.out
    for name in [name for name in sys.modules if name.partition(".")[0] == "stands_out"]:
        del sys.modules[name]
