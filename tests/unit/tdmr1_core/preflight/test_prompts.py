"""The prompts of a run are checked against its rewards before anything is loaded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.errors import raises

from tdmr1_core.config import RewardConfig
from tdmr1_core.config_loading import parse_assignments, resolve
from tdmr1_core.models.prompt_lengths import Reader, load_readers
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.lengths import check_file_lengths
from tdmr1_core.preflight.prompts import check_lengths, check_reward_names
from tdmr1_core.preflight.resolved import resolve_run
from tdmr1_core.preflight.rewards import RewardFinder
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.prompts.sets import PromptSet, load_prompt_set

pytestmark = pytest.mark.unit

FOUND = discover()
WORDS = ("model.name=tiny-words-tdm", "rewards.0.name=ocr_match")


def resolved(folder: Path, texts, *assignments: str):
    """A run of `ocr_match` on the tiny words model with these training and evaluation prompts."""
    path = folder / "prompts.txt"
    path.write_text("".join(f"{text}\n" for text in texts))
    prompts = (f"prompts.train={path}", f"prompts.evaluate={path}")
    changes = [parse_assignments([each]) for each in (*WORDS, *prompts, *assignments)]
    return resolve_run(resolve([{"rewards": [{"name": "x"}]}, *changes]))


def test_prompts_without_a_target_are_refused(tmp_path):
    with raises("nothing-scored", reward="ocr_match", count=2, unscored=2, example="a sign") as caught:
        resolved(tmp_path, ["a sign", "a wall"])
    assert caught.value.values["reason"] == "the prompt has no text between quotation marks"


@pytest.mark.parametrize(("without", "reported"), [(1, False), (2, True), (19, True)])
def test_a_tenth_of_the_prompts_without_a_target_is_reported(tmp_path, without, reported):
    texts = [f"a wall {i}" for i in range(without)] + [f'a sign "{i}"' for i in range(20 - without)]
    found = [warning for warning in resolved(tmp_path, texts).warnings if warning.code == "images-unscored"]
    assert len(found) == reported
    if reported:
        assert {"count": 20, "unscored": without, "example": "a wall 0"}.items() <= found[0].values.items()


def test_typographic_quotes_are_targets(tmp_path):
    assert not [w for w in resolved(tmp_path, ["a sign “CAT”", "a sign „DOG“"]).warnings if w.code == "images-unscored"]


def test_evaluation_prompts_without_a_target_are_only_reported(tmp_path):
    (tmp_path / "held-out.txt").write_text("a wall\n")
    run = resolved(tmp_path, ['a sign "A"'], f"prompts.evaluate={tmp_path}/held-out.txt")
    (found,) = [warning for warning in run.warnings if warning.code == "images-unscored"]
    assert {"prompts": f"{tmp_path}/held-out.txt", "count": 1, "unscored": 1}.items() <= found.values.items()


def test_a_reward_that_the_run_does_not_have_is_refused():
    named = Prompt("a cat", {"rewards": ["jpegsize"]})
    sets = [PromptSet("cats", (named, Prompt("a dog", {"rewards": ["jpeg_size"]}), Prompt("a cow", {})))]
    with raises("reward-metadata", prompts="cats", unknown={"jpegsize": 1}, rewards=["jpeg_size"]) as caught:
        check_reward_names(sets, ["jpeg_size"])
    assert "did you mean 'jpeg_size'?" in caught.value.hint
    check_reward_names(sets, ["jpeg_size", "jpegsize"])


@pytest.mark.parametrize("found", ["jpeg_size", 5, [5], {"a": 1}])
def test_rewards_in_metadata_are_a_list_of_names(found):
    with raises("reward-metadata", key="rewards"):
        check_reward_names([PromptSet("cats", (Prompt("a cat", {"rewards": found}),))], ["jpeg_size"])


@pytest.mark.parametrize(
    ("name", "content", "place", "found", "hint"),
    [
        ("a.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog", "rewards": "jpeg_size"}\n', "line 2", "jpeg_size", '["'),
        ("a.json", '["a cat", {"prompt": "a dog", "rewards": [5]}]', "item 2", [5], '["'),
        ("a.csv", "prompt,rewards\na cat,jpeg_size\n", "line 2", "jpeg_size", ".jsonl"),
    ],
)
def test_rewards_of_another_form_are_named_with_their_place(tmp_path, name, content, place, found, hint):
    path = tmp_path / name
    path.write_text(content)
    with raises("reward-metadata", path=str(path), place=place, key="rewards", found=found) as caught:
        check_reward_names([load_prompt_set(str(path), "tiny")], ["jpeg_size"])
    assert hint in caught.value.hint


@pytest.mark.parametrize("named", ["[]", '["object_count"]'])
def test_prompts_that_exclude_all_trained_rewards_are_refused(tmp_path, named):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "a {word}", "rewards": {named}}}\n' for word in ("cat", "dog")))
    settings = {"rewards": [{"name": "jpeg_size"}], "prompts": {"train": str(path)}}
    settings |= {"evaluation": {"rewards": [{"name": "object_count"}]}}
    with raises("nothing-scored", prompts=str(path), count=2, rewards=["jpeg_size"]):
        resolve_run(resolve([settings]))
    with path.open("a") as file:
        file.write('{"prompt": "a cow", "rewards": ["jpeg_size"]}\n')
    assert len(resolve_run(resolve([settings])).prompts.prompts) == 3


def test_evaluation_prompts_that_exclude_all_rewards_are_only_reported(tmp_path):
    path = tmp_path / "held-out.jsonl"
    path.write_text('{"prompt": "two red circles", "rewards": []}\n')
    run = resolve_run(resolve([{"rewards": [{"name": "jpeg_size"}], "prompts": {"evaluate": str(path)}}]))
    (found,) = [warning for warning in run.warnings if warning.code == "images-unscored"]
    assert found.values == {"prompts": str(path), "count": 1, "rewards": ["jpeg_size"]}


@pytest.mark.parametrize("which", ["train", "evaluate"])
def test_an_empty_name_is_no_prompt_set(tmp_path, monkeypatch, which):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("a cat\n")
    with raises("prompts-unknown", name=""):
        resolve_run(resolve([{"rewards": [{"name": "jpeg_size"}], "prompts": {which: ""}}]))


def test_a_name_that_is_too_long_for_a_file_is_no_prompt_set():
    with raises("prompts-unknown", name="a" * 300):
        resolve_run(resolve([{"rewards": [{"name": "jpeg_size"}], "prompts": {"train": "a" * 300}}]))


def test_a_custom_reward_needs_prompts_unless_the_model_is_embedded(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def own(batch):\n    return [0.0] * len(batch)\n")
    custom = {"rewards": [{"name": "own", "source": f"{path}:own"}]}
    assert resolve_run(resolve([custom])).prompts.name == "count"
    with raises("prompts-missing", reward="own", domain="photo") as caught:
        resolve_run(resolve([custom, {"model": {"name": "sd3.5-tdm"}}]))
    assert "scenes" in caught.value.values["sets"]


def test_long_prompts_are_counted_with_the_place_where_they_end(tmp_path):
    readers = load_readers(FOUND.models.get("tiny-words-tdm"))
    assert {reader.limit for reader in readers} == {10}
    prompts = ["a sign", "a very long description of a wall with many things", 'a wall with many small things "CAT"']
    found = check_lengths(PromptSet("long", tuple(Prompt(text, {}) for text in prompts)), readers)
    assert {"prompts": "long", "count": 3, "truncated": 2}.items() <= found.values.items()
    assert check_lengths(PromptSet("short", (Prompt("a sign", {}),)), readers) is None


def test_a_target_that_is_not_read_is_reported(tmp_path):
    run = resolved(tmp_path, ['a wall of many many small things and then at last a sign "CAT"', 'a sign "DOG"'])
    found = check_file_lengths(run)
    assert [warning.values["lost"] for warning in found] == [{"ocr_match": 1}]
    assert [warning.code for warning in found] == ["prompts-truncated"]


def test_a_generated_set_is_not_read_by_tokenizers_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr("tdmr1_core.preflight.lengths.load_readers", lambda entry: pytest.fail("it was read"))
    assert check_file_lengths(resolve_run(resolve([{"rewards": [{"name": "object_count"}]}]))) == []


class Letters:
    """A tokenizer with a start token, one token for each letter, and an end token; it knows no offsets."""

    is_fast = False

    def __call__(self, text, truncation=False, max_length=None, verbose=True):
        kept = text[: max_length - 2] if truncation else text
        return {"input_ids": ["<", *kept, ">"]}

    def decode(self, tokens, skip_special_tokens):
        return "".join(tokens[1:-1])

    def apply_chat_template(self, messages, **settings):
        return f"user: {messages[0]['content']} assistant:"


@pytest.mark.parametrize(("text", "read"), [("", 0), ("a" * 18, 18), ("a" * 19, 18), ("a" * 100, 18)])
def test_the_characters_that_a_slow_tokenizer_reads(text, read):
    assert Reader("letters", Letters(), 20).characters(text) == read


@pytest.mark.parametrize(("length", "read"), [(3, 3), (4, 4), (20, 12)])
def test_a_chat_template_takes_a_part_of_the_limit(length, read):
    # "user: " has 6 letters, " assistant:" has 11; with two special tokens, 1 letter of 20 is left for a short prompt.
    assert Reader("letters", Letters(), 20 if length == 20 else 23, template="chat").characters("a" * length) == read


def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path):
    entry = FOUND.models.get("tiny-tdm")
    copy = tmp_path / "pipeline"
    shutil.copytree(entry.base, copy)
    (copy / "tokenizer_2" / "tokenizer.json").write_text("{")
    (copy / "tokenizer_2" / "tokenizer_config.json").write_text("{")
    with raises("model-incomplete", source=str(copy)):
        load_readers(replace(entry, base=str(copy)))


def test_a_preflight_function_gets_the_run_folder_also_for_truncated_prompts(tmp_path, monkeypatch):
    folders = []

    def preflight(registered, options, prompts, metadata, run_folder):
        folders.append(run_folder)
        return [None] * len(prompts)

    monkeypatch.setattr("tdmr1_core.preflight.prompts.preflight", preflight)
    rewards = RewardFinder(FOUND.plugins.rewards).resolve([RewardConfig(name="object_count")])
    long = PromptSet("long", (Prompt("a" * 40, {}),))
    assert check_lengths(long, [Reader("letters", Letters(), 20)], rewards, tmp_path) is not None
    assert folders == [tmp_path, tmp_path]
