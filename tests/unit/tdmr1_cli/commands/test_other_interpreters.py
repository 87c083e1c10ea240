"""`tdmr1 rewards try`, `check` and `info` with --python, called in this process; and `info` of a server."""

import json
import sys
import textwrap
import threading
import time

import pytest
import uvicorn
from PIL import Image
from support.environments import bare_environment, image_environment

from tdmr1_cli.main import main
from tdmr1_rewards.api import RewardResult, RewardSpec
from tdmr1_rewards.serving.addresses import listen
from tdmr1_rewards.serving.server import build_app

pytestmark = pytest.mark.unit

MINE = """
    import sys
    import only_there
    from tdmr1_rewards import RewardExample, RewardResult, RewardSpec
    from PIL import Image

    SPEC = RewardSpec(name="bright", summary="", factory="mine:build", examples="mine:examples",
                      requires=("only_there",))

    def build():
        return lambda batch: RewardResult([i.getpixel((0, 0))[0] / 255 for i in batch.images],
                                          [{"where": sys.prefix}] * len(batch))

    def examples():
        shades = [(255, True), (250, True), (3, False), (0, False)]
        return [RewardExample(image=Image.new("RGB", (16, 16), (shade,) * 3), prompt="light", good=good)
                for shade, good in shades]

    def shade(image, prompt, scale=0.5):
        return scale * image.getpixel((0, 0))[0]

    def wrong(image, prompt):
        return image.mean()
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The interpreter of an environment with numpy, Pillow and a module that this environment does not have."""
    python = image_environment(tmp_path_factory.mktemp("other"))
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    (site / "only_there.py").write_text("")
    return python


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """`run(*arguments, code=0)` runs a command in a folder with mine.py and grey.png; returns stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    Image.new("RGB", (8, 8), (51, 51, 51)).save(tmp_path / "grey.png")

    def run(*arguments, code=0):
        assert main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
        return capsys.readouterr()

    return run


def test_try_runs_the_reward_there_with_options_that_are_validated_there(run, other):
    assert "[reward-import]" in run("rewards", "try", "mine.py:shade", "grey.png", code=2).err
    arguments = ["rewards", "try", "mine.py:shade", "grey.png", "--python", other, "--json"]
    assert json.loads(run(*arguments).out)["images"][0]["score"] == 25.5
    assert json.loads(run(*arguments, "--option", "scale=2").out)["images"][0]["score"] == 102
    assert "'scael'" in run(*arguments, "--option", "scael=2", code=2).err


def test_what_a_reward_requires_is_not_looked_up_here(run, other):
    document = json.loads(run("rewards", "try", "mine.py:SPEC", "grey.png", "--python", other, "--json").out)
    assert document["images"][0]["details"] == {"where": str(other.parents[1])}


def test_an_exception_there_names_file_line_and_the_form_of_the_images(run, other):
    error = run("rewards", "try", "mine.py:wrong", "grey.png", "--python", other, code=2).err
    line = textwrap.dedent(MINE).split("\n").index("    return image.mean()") + 1
    assert f"has no attribute 'mean' (mine.py:{line}, in wrong) [reward-failed]" in error
    assert "the images were given as a PIL image" in error
    assert "on_failure" not in error


def test_check_uses_the_examples_of_the_other_environment(run, other):
    done = run("rewards", "check", "mine.py:SPEC", "--python", other, "--json")
    checks = {check["name"]: check["sentence"] for check in json.loads(done.out)["checks"]}
    assert checks["good and bad"].startswith("4 of 4 pairs")


def test_check_says_that_examples_are_not_available_there(run, other, tmp_path):
    text = (tmp_path / "mine.py").read_text().replace('examples="mine:examples"', 'examples="mine:no_examples"')
    (tmp_path / "other.py").write_text(text.replace("mine:", "other:"))
    done = run("rewards", "check", "other.py:SPEC", "--python", other, "--json")
    assert "warning: the examples are not available from the other environment: " in done.err
    assert json.loads(done.out)["fit"]


def test_info_describes_the_object_of_the_other_environment(run, other, tmp_path):
    document = json.loads(run("rewards", "info", "mine.py:shade", "--python", other, "--json").out)
    assert [(item["name"], item["default"]) for item in document["option_list"]] == [("scale", 0.5)]
    assert document["taken_as"].startswith("a function of one image at a time")
    assert document["usable"]
    assert document["command"].endswith(f"--set rewards.0.python={other}")
    assert document["config"]["rewards"][0]["python"] == str(other)
    shown = run("rewards", "info", "mine.py:SPEC", "--python", other).out
    assert f"usable with {other}" in shown
    text = (tmp_path / "mine.py").read_text().replace('("only_there",)', '("no_such_module",)')
    (tmp_path / "needy.py").write_text(text)
    assert "no, needs no_such_module" in run("rewards", "info", "needy.py:SPEC", "--python", other).out


def test_options_of_a_registered_reward_are_listed(run):
    here = json.loads(run("rewards", "info", "object_count", "--json").out)
    there = json.loads(run("rewards", "info", "object_count", "--python", sys.executable, "--json").out)
    assert there["option_list"] == here["option_list"]


@pytest.mark.parametrize("command", [("info",), ("try", "grey.png"), ("check",), ("serve",)])
def test_an_interpreter_that_cannot_be_used_is_an_error(run, tmp_path, command):
    verb, *images = command
    broken, bare = tmp_path / "broken", bare_environment(tmp_path / "bare")
    broken.write_text("#!/bin/sh\nexit 4\n")
    arguments = ["rewards", verb, "mine.py:shade", *images, "--python"]
    assert "[reward-environment]" in run(*arguments, tmp_path / "no-python", code=2).err
    assert "Permission denied [reward-environment]" in run(*arguments, broken, code=2).err
    broken.chmod(0o755)
    assert "exited with code 4 [reward-build]" in run(*arguments, broken, code=2).err
    assert "only_there" in run(*arguments, bare, code=2).err


@pytest.mark.parametrize("command", [("info",), ("try", "grey.png"), ("check",), ("serve",)])
def test_a_reward_on_a_server_has_no_interpreter_here(run, command):
    verb, *images = command
    error = run("rewards", verb, "remote:http://127.0.0.1:9/far", *images, "--python", sys.executable, code=2).err
    assert "[setting-conflict]" in error
    assert "--python" in error


@pytest.fixture
def address(monkeypatch):
    """The address of a server whose reward has limits of its own."""
    spec = RewardSpec(
        name="far", summary="how far", factory="a:b", batch_size=3, groupwise=True, timeout=None, score_range="0 to 9"
    )
    app = build_app(lambda batch: RewardResult([0.0] * len(batch)), spec, "a-token")
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    monkeypatch.setenv("TDMR1_REWARD_TOKEN", "a-token")
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def facts(text):
    """The facts that `info` prints before the options."""
    return dict(line.split("  ", 1) for line in text.partition("\n\n")[0].splitlines())


def test_info_of_a_server_shows_its_values(run, address):
    shown = facts(run("rewards", "info", f"remote:{address}/far").out)
    shown = {name: value.strip() for name, value in shown.items()}
    assert shown["what it rewards"] == "how far"
    assert shown["range"] == "0 to 9"
    assert shown["batch size"] == "3, whole groups only"
    assert shown["time-out"] == "none"
    assert "[reward-unknown]" in run("rewards", "info", f"remote:{address}/near", code=2).err


def test_info_of_a_server_that_does_not_answer_shows_no_values(run, address, monkeypatch):
    monkeypatch.setenv("TDMR1_REWARD_TOKEN", "another")
    for source, reason in (("http://127.0.0.1:9/far", "could not be reached"), (f"{address}/far", "rejects the token")):
        shown = facts(run("rewards", "info", f"remote:{source}").out)
        for name in ("range", "images", "batch size", "time-out"):
            assert shown[name].strip() == "decided by the server"
        assert reason in shown["usable here"]
        document = json.loads(run("rewards", "info", f"remote:{source}", "--json").out)
        assert document["usable"] is document["batch_size"] is document["groupwise"] is None
        assert "timeout" in document["decided_by_server"]
