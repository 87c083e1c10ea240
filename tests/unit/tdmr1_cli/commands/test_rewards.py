"""The verbs of `tdmr1 rewards` in this process; real processes are in tests/integration."""

import json
import os
import sys
import textwrap

import numpy as np
import pytest
import yaml
from PIL import Image
from support.code_length import code_lines

from tdmr1_cli.commands.rewards.boxes import draw_boxes
from tdmr1_cli.commands.rewards.common import parse_options
from tdmr1_cli.main import main
from tdmr1_core.errors import Tdmr1Error

pytestmark = pytest.mark.unit

MINE = """
    from pydantic import Field
    from tdmr1_rewards import RewardBatch, RewardOptions, RewardResult


    class Options(RewardOptions):
        threshold: float = Field(0.5, description="where red begins")
        words: tuple[str, ...] = ("a", "b")


    class RedBoxes:
        '''How much of the picture is red.'''

        def __init__(self, options: Options) -> None:
            self.threshold = options.threshold

        def __call__(self, batch: RewardBatch) -> RewardResult:
            scores, details = [], []
            for image, prompt, metadata in zip(batch.images, batch.prompts, batch.metadata):
                width, height = image.size
                red = image.getpixel((0, 0))[0] / 255
                scores.append(None if metadata.get("hard") else red)
                box = {"box": [1, 1, width - 2, height - 2], "label": "red", "score": red}
                told = {"read": prompt.upper(), "ratio": red}
                details.append(told | ({"boxes": [box]} if red > self.threshold else {}))
            return RewardResult(scores, details)


    def peers(images, prompts, metadata, scale=2.0):
        return [scale * float(image.mean()) for image in images], {}


    def wavers(images, prompts, metadata, calls=[]):
        calls.append(1)
        return [float(len(calls)) for _ in images], {}
"""


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What main sets is undone."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(MINE))
    return path


@pytest.fixture
def pictures(tmp_path):
    """A red picture and a darker one, of another size."""
    paths = [tmp_path / "red.png", tmp_path / "dark.jpg"]
    Image.new("RGB", (40, 30), (255, 0, 0)).save(paths[0])
    Image.new("RGB", (20, 20), (51, 51, 51)).save(paths[1], quality=100)
    return [str(path) for path in paths]


@pytest.fixture
def run(capsys):
    """`run(*arguments, code=0)`: stdout and stderr."""

    def run(*arguments, code=0):
        assert main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
        return capsys.readouterr()

    return run


def test_a_reward_of_a_file_is_tried_on_pictures(run, mine, pictures, tmp_path):
    source = f"{mine}:RedBoxes"
    done = run("rewards", "try", source, *pictures, "--prompt", "hello", "--save", tmp_path / "boxes")
    assert 'read: "HELLO"; ratio: 1; boxes: 1 (red)' in " ".join(done.out.split())
    assert "0.2" in done.out
    assert "taken as a tdmr1 reward with Options" in done.err
    saved = tmp_path / "boxes" / "000-red.png"
    assert f"saved {saved}" in done.err
    assert list((tmp_path / "boxes").iterdir()) == [saved]
    assert Image.open(saved).size == (360, 270)


def test_trying_as_json_with_a_prompt_each_options_and_metadata(run, mine, pictures):
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
    document = json.loads(run("rewards", "try", f"{mine}:RedBoxes", *pictures, *arguments).out)
    assert document["reward"] == "red_boxes"
    assert [image["prompt"] for image in document["images"]] == ["a", "b"]
    assert [image["score"] for image in document["images"]] == [None, None]
    assert document["images"][1]["details"]["boxes"] == [{"box": [1, 1, 18, 18], "label": "red", "score": 0.2}]


def test_what_a_reward_cannot_judge_is_said(run, mine, pictures):
    done = run("rewards", "try", f"{mine}:RedBoxes", pictures[0], "--metadata", '{"hard": 1, "prompt": "sign"}')
    assert "cannot judge" in done.out
    assert '"SIGN"' in done.out
    assert "--save DIR" in done.err
    done = run("rewards", "try", f"{mine}:RedBoxes", pictures[1], "--save", "nowhere")
    assert "told of no boxes" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metadata", "{"], "--metadata is not JSON"),
        (["--metadata", "[]"], "--metadata is a list, not an object"),
        (["--prompt", "a", "--prompt", "b"], "there are 2 prompts for 1 pictures"),
        (["--option", "threshold"], "--option 'threshold' is not an option"),
        (["--option", "treshold=1"], "unknown option 'treshold'"),
    ],
)
def test_mistakes_of_trying(run, mine, pictures, arguments, message):
    assert message in run("rewards", "try", f"{mine}:RedBoxes", pictures[0], *arguments, code=2).err


def test_pictures_that_cannot_be_read(run, mine, tmp_path):
    assert "can't be read" in run("rewards", "try", f"{mine}:RedBoxes", tmp_path / "no.png", code=2).err
    assert "is not a picture" in run("rewards", "try", f"{mine}:RedBoxes", mine, code=2).err


def test_a_reward_that_needs_what_is_not_there(run, tmp_path):
    path = tmp_path / "needy.py"
    path.write_text(
        "from tdmr1_rewards import RewardSpec\n"
        "SPEC = RewardSpec(name='needy', summary='', factory='needy:N', default_prompts='',\n"
        "                  requires=('no_such_30|no_such_31',), install='needy[all]')\n"
    )
    done = run("rewards", "check", f"{path}:SPEC", code=2)
    assert "needs no_such_30 or no_such_31, which is not installed here" in done.err
    assert "pip install 'needy[all]'" in done.err
    assert "no, needs no_such_30" in run("rewards", "info", f"{path}:SPEC").out


def test_checking_says_whether_to_train(run, mine):
    done = run("rewards", "check", f"{mine}:peers", "--option", "scale=3.0")
    assert "peers is fit to train with" in done.out
    assert "taken as a flow_grpo-style function, peers(images, prompts, metadata, scale)" in done.err
    done = run("rewards", "check", f"{mine}:wavers", "--json", code=1)
    document = json.loads(done.out)
    assert not document["fit"]
    assert "not fit to train with" in document["verdict"]
    assert {check["name"]: check["outcome"] for check in document["checks"]}["determinism"] == "failed"


def test_info_of_a_file_says_how_it_is_used(run, mine):
    source = f"{mine}:RedBoxes"
    done = run("rewards", "info", source)
    assert "How much of the picture is red." in done.out
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
    with pytest.raises(Tdmr1Error, match="can't be read"):
        parse_options(["a=["])


def test_boxes_are_drawn_where_they_are():
    image = np.full((300, 400, 3), 255, np.uint8)
    drawn = draw_boxes(image, [{"box": [250, 50, 350, 150], "label": "dog", "score": 0.5}, {"box": (60, 200, 10, 250)}])
    changed = np.argwhere((np.asarray(drawn) != 255).any(-1))
    assert changed.min(0).tolist() == [50, 10]
    assert changed.max(0).tolist() == [250, 350]
    assert (image == 255).all()
    for wrong in ({"label": "dog"}, {"box": [1, 2, 3]}, {"box": ["a"] * 4}):
        with pytest.raises(Tdmr1Error, match="which is no box"):
            draw_boxes(image, [wrong])


def test_a_new_package_is_short_and_says_what_comes_next(run, tmp_path):
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
    assert "is already there" in run("rewards", "new", "My-reward", "--output", folder, code=2).err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("2d", "cannot be a reward's name"),
        ("a/b", "cannot be a reward's name"),
        ("class", "cannot be a reward's name"),
        ("object-count", "there is a reward 'object_count' already"),
        ("json", "there is a Python module 'json' already"),
    ],
)
def test_names_that_cannot_be_had(run, tmp_path, name, message):
    assert message in run("rewards", "new", name, "--output", tmp_path / "made", code=2).err
    assert not (tmp_path / "made").exists()


def test_the_package_of_new_judges_as_its_test_says(run, tmp_path, monkeypatch):
    run("rewards", "new", "stands-out", "--output", tmp_path / "made")
    monkeypatch.syspath_prepend(tmp_path / "made" / "src")
    path = tmp_path / "spec.py"
    path.write_text("import stands_out\nfound = []\nstands_out.tdmr1_register_rewards(found.append)\n(SPEC,) = found\n")
    done = run("rewards", "check", f"{path}:SPEC")
    assert "stands_out is fit to train with" in done.out
    assert "4 of 4 pairs of a good and a bad example are ranked right" in done.out
    for name in [name for name in sys.modules if name.partition(".")[0] == "stands_out"]:
        del sys.modules[name]
