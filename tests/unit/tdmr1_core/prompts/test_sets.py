"""Prompt sets: stable, distinct, without overlap of training and held-out prompts; folders of prompt files."""

import hashlib
import os

import pytest
from support.errors import raises

from tdmr1_core.prompts.sets import PROMPT_SETS, held_out_companion, load_prompts
from tdmr1_rewards.builtin.ocr_match import find_targets
from tdmr1_rewards.builtin.text_comparison import normalize

pytestmark = pytest.mark.unit

STABLE = {
    "ocr": (4096, "4420c21b87df"),
    "ocr-held-out": (512, "6c531045d6c5"),
    "scenes": (1920, "7b6cddf1cc02"),
    "scenes-held-out": (256, "74fdeb8060e3"),
}
"""The number of prompts and the start of a hash of all of them: the prompts of a run must never change."""


@pytest.mark.parametrize("name", STABLE)
def test_prompts_are_distinct_and_never_change(name):
    texts = [prompt.text for prompt in load_prompts(name, "photo")]
    assert len(set(texts)) == len(texts)
    assert (len(texts), hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]) == STABLE[name]
    assert all(text == text.strip() and text[0].isupper() for text in texts)


@pytest.mark.parametrize("name", ["ocr", "scenes"])
def test_the_held_out_set_shares_no_prompt(name):
    assert held_out_companion(name, "photo") == f"{name}-held-out"
    training, held_out = ({p.text for p in load_prompts(s, "photo")} for s in (name, f"{name}-held-out"))
    assert not training & held_out


def test_the_reward_finds_the_same_text_in_prompt_and_metadata():
    for name, domain in (("ocr", "photo"), ("ocr-held-out", "photo"), ("ocr", "words")):
        for prompt in load_prompts(name, domain):
            assert find_targets(prompt.text, {}).texts == (normalize(prompt.metadata["text"]),)
            assert find_targets(prompt.text, prompt.metadata).texts == (normalize(prompt.metadata["text"]),)


def test_held_out_texts_and_scenes_occur_in_no_training_prompt():
    def parts(name):
        prompts = load_prompts(name, "photo")
        texts = {p.metadata["text"] for p in prompts}
        return texts, {p.text.replace(p.metadata["text"], "") for p in prompts}

    (texts, scenes), (held_texts, held_scenes) = parts("ocr"), parts("ocr-held-out")
    assert not texts & held_texts
    assert not scenes & held_scenes
    assert len(scenes) == 24
    assert len(held_scenes) == 8
    assert len(texts) > 700
    assert {len(text.split()) for text in texts} >= {1, 2, 3, 4}


def test_folders_of_flow_grpo(tmp_path):
    ocr, geneval = tmp_path / "ocr", tmp_path / "geneval"
    for folder, files in [(ocr, {"train.txt": 'A sign "One".\n\n', "test.txt": 'A sign "Two".\n'})]:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    geneval.mkdir()
    line = '{"tag": "counting", "include": [{"class": "cow", "count": 2}], "exclude": [], "prompt": "two cows"}\n'
    (geneval / "train_metadata.jsonl").write_text(line)
    (geneval / "test_metadata.jsonl").write_text(line.replace("two", "three"))
    (geneval / "train.txt").write_text("not this one\n")
    assert [prompt.text for prompt in load_prompts(str(ocr), "photo")] == ['A sign "One".']
    (prompt,) = load_prompts(str(geneval), "photo")
    assert (prompt.text, prompt.metadata["include"]) == ("two cows", [{"class": "cow", "count": 2}])
    for given in (str(ocr), str(ocr / "train.txt")):
        assert held_out_companion(given, "photo") == str(ocr / "test.txt")
    assert held_out_companion(str(geneval), "photo") == str(geneval / "test_metadata.jsonl")
    assert held_out_companion(str(ocr / "test.txt"), "photo") == str(ocr / "test.txt")


def test_each_domain_has_its_own_sets():
    assert set(PROMPT_SETS) == {"tiny", "words", "photo"}
    assert "ocr" not in PROMPT_SETS["tiny"]


def test_a_quarter_of_the_words_of_the_embedded_world_is_held_out():
    trained, held_out = (load_prompts(name, "words") for name in ("ocr", held_out_companion("ocr", "words")))
    assert (len(trained), len(held_out)) == (384, 128)
    assert not {prompt.text for prompt in trained} & {prompt.text for prompt in held_out}


@pytest.mark.parametrize("name", ["nosuch", "nosuch.txt"])
def test_unknown_prompt_sets(name):
    with raises("prompts-unknown", name=name, domain="tiny"):
        load_prompts(name, "tiny")


def test_what_is_not_a_prompt_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "dangling.txt").symlink_to("nowhere.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "train.txt").write_text("not for an empty name\n")
    expected = {
        "": "an empty name",
        "folder": "a folder with neither train_metadata.jsonl nor train.txt",
        "loop.txt": "a link that leads back to itself",
        "dangling.txt": "a link to 'nowhere.txt', which does not exist",
        "pipe.txt": "a pipe, not a file",
        os.devnull: "a device",
        "a" * 300: None,
        "a\0b": None,
    }
    for name, found in expected.items():
        assert held_out_companion(name, "tiny") == name
        with raises("prompts-unknown", name=name, domain="tiny", found=found):
            load_prompts(name, "tiny")
