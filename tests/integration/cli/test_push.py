"""`tdmr1 export --push` with a hub on this machine, and what the exported files say about the machine they are from."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from support.command_line import SMALL, run_tdmr1
from support.fake_hub import TOKEN, serving

pytestmark = pytest.mark.integration

REPOSITORY = "someone/my-lora"
NAMES = {"README.md", "pytorch_lora_weights.safetensors", "comfyui_lora.safetensors"}
PRIVATE = "home-of-alice"
"""A folder with the inputs of the run. Its name must not be in an exported file."""
REWARD = (
    "def warm(images, prompts, folder='', **_):\n    return [float(image.getpixel((0, 0))[0]) for image in images]\n"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose base, LoRA, prompts, reward and option are paths of a private folder."""
    inputs = tmp_path_factory.mktemp("inputs") / PRIVATE
    tiny = resources.files("tdmr1_core") / "tiny"
    shutil.copytree(str(tiny / "pipeline"), inputs / "base")
    shutil.copytree(str(tiny / "student"), inputs / "student")
    (inputs / "train.txt").write_text("two red circles\nthree green squares\n")
    (inputs / "warm.py").write_text(REWARD)
    options = ["--reward", "warm.py:warm", "--model-path", "base", "--lora", "student", "--prompts", "train.txt"]
    folder = ["--set", f"rewards.0.options.folder={inputs}", "--iterations", 1, "--quiet", "--output", "run"]
    run_tdmr1("train", *SMALL, *options, *folder, cwd=inputs)
    return inputs / "run"


@pytest.fixture
def hub():
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def pushed(run, tmp_path_factory):
    """An export that was pushed to a new private repository: its folder, the document, the messages and the hub."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("exports") / "lora"
    with serving() as served:
        options = ["--comfyui", "--output", folder, "--push", REPOSITORY, "--private", "--json"]
        done = run_tdmr1("export", run, *options, **served.environment(home))
    return folder, json.loads(done.stdout), done.stdout + done.stderr, served


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_hub_receives_the_export_byte_by_byte(pushed):
    folder, document, printed, hub = pushed
    repository = hub.repositories[REPOSITORY]
    assert repository.private
    assert repository.commits == [contents(folder)]
    assert contents(folder).keys() == NAMES
    sizes = {name: len(content) for name, content in contents(folder).items()}
    assert {file["name"]: file["bytes"] for file in document["push"].pop("files")} == sizes
    assert document["push"] == {
        "repository": REPOSITORY,
        "private": True,
        "dry_run": False,
        "url": f"{hub.url}/{REPOSITORY}",
    }
    assert document["images_compared"] > 0
    assert TOKEN not in printed


def test_the_card_that_arrives_has_the_front_matter_of_the_hub(pushed):
    card = ModelCard(pushed[3].repositories[REPOSITORY].commits[0]["README.md"].decode())
    assert isinstance(card.data, ModelCardData)
    assert card.data.to_dict() == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["lora", "text-to-image", "diffusers", "tdm-r1", "few-step", "sd3"],
        "license": "apache-2.0",
    }
    assert 'from_pretrained("path/to/base"' in card.text.replace("'", '"')


def test_no_exported_file_contains_a_local_path(pushed, run):
    """The base, LoRA, prompts, reward, its option and the run are all in a folder with this name."""
    assert PRIVATE in (run / "config.yaml").read_text()
    for name, content in contents(pushed[0]).items():
        for private in (PRIVATE, str(Path.home()), str(pushed[0].parent)):
            assert private.encode() not in content, name


def test_an_export_in_the_folder_is_pushed_as_it_is(pushed, run, hub, tmp_path):
    """A push that failed is repeated without another export, and changes of the card are kept."""
    folder = tmp_path / "lora"
    shutil.copytree(pushed[0], folder)
    with (folder / "README.md").open("a") as card:
        card.write("\nMy own words.\n")
    before = contents(folder)
    arguments = ["export", run, "--output", folder, "--push", REPOSITORY]
    hub.denied = 403
    done = run_tdmr1(*arguments, code=2, **hub.environment(tmp_path))
    assert "[hub-denied]" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert contents(folder) == before
    hub.denied = None
    done = run_tdmr1(*arguments, "--comfyui", **hub.environment(tmp_path))
    assert done.stdout == f"{hub.url}/{REPOSITORY}\n"
    assert "loading" not in done.stderr
    assert hub.repositories[REPOSITORY].commits == [before]
    assert not hub.repositories[REPOSITORY].private


def test_a_dry_run_prints_the_files_and_contacts_nothing(run, hub, tmp_path):
    folder = tmp_path / "lora"
    arguments = ["export", run, "--output", folder, "--push", REPOSITORY, "--private", "--dry-run"]
    done = run_tdmr1(*arguments, **hub.environment(tmp_path, HF_TOKEN=""))
    assert hub.requests == []
    assert contents(folder).keys() == NAMES - {"comfyui_lora.safetensors"}
    for name, content in contents(folder).items():
        assert f"{name} " in done.stdout
        assert str(len(content)) in done.stdout
    assert f"--push {REPOSITORY} would upload these files (a new repository is private)" in done.stdout
    done = run_tdmr1(*arguments, "--json", **hub.environment(tmp_path, HF_TOKEN=""))
    assert json.loads(done.stdout)["push"]["url"] is None
    assert hub.requests == []


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--private"], "usage"),
        (["--dry-run"], "usage"),
        (["--push", "my-lora"], "argument-invalid"),
        (["--push", REPOSITORY], "hub-unavailable"),  # commands of tests are offline
    ],
)
def test_an_upload_that_cannot_succeed_is_refused_before_the_export(run, tmp_path, options, code):
    done = run_tdmr1("export", run, "--output", tmp_path / "lora", *options, "--json", code=2)
    assert json.loads(done.stdout)["error"]["code"] == code
    assert "loading" not in done.stderr
    assert not (tmp_path / "lora").exists()


def test_without_a_token_nothing_is_exported(run, hub, tmp_path):
    arguments = ["export", run, "--output", tmp_path / "lora", "--push", REPOSITORY, "--json"]
    done = run_tdmr1(*arguments, code=2, **hub.environment(tmp_path, HF_TOKEN=""))
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "hub-denied"
    assert "hf auth login" in error["hint"]
    assert hub.requests == []
    assert not (tmp_path / "lora").exists()
