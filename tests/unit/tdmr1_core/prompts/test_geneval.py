"""Prompts of the six GenEval tasks: format, no evaluation request, no overlap of training and held-out sets."""

from __future__ import annotations

import collections

import pytest

from tdmr1_core.prompts.geneval import NAMES, TASKS, counting, fingerprint, geneval
from tdmr1_core.prompts.sets import held_out_companion, load_prompts
from tdmr1_rewards.builtin.geneval import read_request

pytestmark = pytest.mark.unit

# The requests of three of the 553 evaluation prompts.
EVALUATED = [
    {"tag": "counting", "include": [{"class": "clock", "count": 2}]},
    {"tag": "colors", "include": [{"class": "fire hydrant", "count": 1, "color": "blue"}]},
    {
        "tag": "position",
        "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
    },
]


@pytest.fixture(scope="module")
def sets():
    return {held_out: geneval(held_out) for held_out in (False, True)}


def test_tasks_are_equally_frequent(sets):
    training = collections.Counter(prompt.metadata["tag"] for prompt in sets[False])
    assert training == dict.fromkeys(TASKS, 480)
    held_out = collections.Counter(prompt.metadata["tag"] for prompt in sets[True])
    assert held_out == {**dict.fromkeys(TASKS, 40), "single_object": 20}


def test_prompts_are_deterministic_and_held_out_requests_are_distinct(sets):
    assert [prompt.text for prompt in geneval(True)] == [prompt.text for prompt in sets[True]]
    marks = [{fingerprint(prompt.metadata) for prompt in of_set} for of_set in sets.values()]
    assert not marks[0] & marks[1]
    assert len(marks[1]) == len(sets[True])


def test_no_evaluation_request_occurs_but_single_objects(sets):
    requests = {fingerprint(prompt.metadata) for of_set in sets.values() for prompt in of_set}
    evaluation = set(read_fingerprints())
    assert len(evaluation) == 553
    assert all(fingerprint(entry) in evaluation for entry in EVALUATED)
    singles = {fingerprint({"tag": "single_object", "include": [{"class": name, "count": 1}]}) for name in NAMES}
    assert requests & evaluation == singles
    texts = {prompt.text for of_set in sets.values() for prompt in of_set}
    assert not any(text in texts for text in ("a photo of a bench", "a photo of two clocks"))


def read_fingerprints():
    from importlib import resources

    return (resources.files("tdmr1_core.prompts") / "geneval_evaluation.txt").read_text().split()


def test_fingerprints_ignore_the_order_of_objects_but_not_relations():
    dog, cat = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}
    assert fingerprint({"tag": "two_object", "include": [dog, cat]}) == fingerprint(
        {"tag": "two_object", "include": [cat, dog]}
    )
    marks = {
        fingerprint({"tag": "position", "include": [one, {**other, "position": [relation, 0]}]})
        for one, other in ((dog, cat), (cat, dog))
        for relation in ("left of", "above")
    }
    assert len(marks) == 4


def test_the_reward_reads_the_request_of_the_prompt(sets):
    for prompt in sets[True]:
        request = read_request(prompt.metadata, prompt.text)
        assert request.tag == prompt.metadata["tag"]
        named = prompt.text.removeprefix("a photo of ").removeprefix("a picture of ")
        if request.tag in ("two_object", "single_object"):
            assert all(item.thing in named for item in request.include)
        if request.tag == "counting":
            (item,) = request.include
            assert named.split()[0] == {2: "two", 3: "three", 4: "four"}[item.count]
            assert request.limits == {item.thing: item.count + 1}
        if request.tag == "position":
            target, item = request.include
            assert item.position[1] == 0
            assert named.index(item.thing) < named.index(item.position[0]) < named.rindex(target.thing)
        if request.tag in ("colors", "color_attr"):
            assert all(f"{item.colour} {item.thing}" in named for item in request.include)
            assert all(item.thing != "person" for item in request.include)


def test_articles_and_plurals():
    texts = {prompt.text for held_out in (False, True) for prompt in (*geneval(held_out), *counting(held_out))}
    words = " ".join(texts)
    assert " a apple" not in words
    assert " a orange" not in words
    assert "benchs" not in words
    assert "knifes" not in words
    assert any("benches" in text for text in texts)


@pytest.mark.parametrize("domain", ["tiny", "photo"])
@pytest.mark.parametrize("name", ["geneval", "count"])
def test_default_sets_of_rewards_exist_in_every_domain(domain, name):
    training = load_prompts(name, domain)
    held_out = load_prompts(held_out_companion(name, domain), domain)
    assert held_out_companion(name, domain) == f"{name}-held-out"
    assert not {prompt.text for prompt in training} & {prompt.text for prompt in held_out}
    assert all(read_request(prompt.metadata, prompt.text) is not None for prompt in (*training, *held_out))


def test_geneval_of_the_embedded_world_is_half_counts_that_exclude_one_more():
    tags = collections.Counter(prompt.metadata["tag"] for prompt in load_prompts("geneval", "tiny"))
    assert tags["counting"] == tags["position"]
    for prompt in load_prompts("geneval-held-out", "tiny"):
        if prompt.metadata["tag"] == "counting":
            (request,), (limit,) = prompt.metadata["include"], prompt.metadata["exclude"]
            assert limit == {"class": request["class"], "count": request["count"] + 1}
