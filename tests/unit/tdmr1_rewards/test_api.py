import ast
from pathlib import Path

import numpy as np
import pytest
from support.errors import raises

import tdmr1_rewards
from tdmr1_rewards import RewardBatch, RewardContext, RewardSpec

pytestmark = pytest.mark.unit

CONTEXT = RewardContext(run_folder=None, iteration=0, seed=0)


def make_batch(images):
    count = len(images)
    return RewardBatch(
        images=images,
        prompts=[f"prompt {i}" for i in range(count)],
        metadata=[{"i": i} for i in range(count)],
        group_ids=[i // 2 for i in range(count)],
        image_ids=[10 + i for i in range(count)],
        context=CONTEXT,
    )


def make_spec(**changes):
    fields = {"name": "good_one", "summary": "", "factory": "a.b:C", "default_prompts": "count"} | changes
    return RewardSpec(**fields)


@pytest.mark.parametrize("images", [list("abcd"), np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3)])
def test_select_keeps_the_fields_of_an_image_together(images):
    batch = make_batch(images).select([3, 0])
    assert len(batch) == 2
    assert type(batch.images) is type(images)
    assert np.array_equal(batch.images[0], images[3])
    assert np.array_equal(batch.images[1], images[0])
    assert batch.prompts == ["prompt 3", "prompt 0"]
    assert batch.metadata == [{"i": 3}, {"i": 0}]
    assert batch.group_ids == [1, 0]
    assert batch.image_ids == [13, 10]
    assert batch.context is CONTEXT


def test_an_empty_selection_keeps_the_image_shape():
    assert make_batch(np.zeros((4, 2, 2, 3), np.uint8)).select([]).images.shape == (0, 2, 2, 3)


def test_a_batch_with_unequal_lengths_is_rejected():
    lengths = {"images": 2, "prompts": 1, "metadata": 2, "group_ids": 2, "image_ids": 2}
    with raises("reward-images", lengths=lengths):
        RewardBatch(["a", "b"], ["p"], [{}, {}], [0, 0], [0, 1], CONTEXT)


@pytest.mark.parametrize("name", ["Bad", "bad-name", "2bad", "bad__name", "bad_", ""])
def test_reward_names_must_be_snake_case(name):
    with raises("reward-spec", reward=name):
        make_spec(name=name)


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("api_version", 2),
        ("factory", "a.b.C"),
        ("options", "a b:C"),
        ("batch_size", 0),
        ("timeout", 0.0),
        ("image_format", "tensor"),
    ],
)
def test_a_spec_with_an_invalid_field_is_rejected(field, found):
    assert make_spec()
    with raises("reward-spec", reward="good_one", field=field, found=found):
        make_spec(**{field: found})


def test_every_public_name_can_be_imported():
    from tdmr1_rewards.options import RewardOptions

    assert tdmr1_rewards.RewardOptions is RewardOptions
    assert all(getattr(tdmr1_rewards, name) is not None for name in tdmr1_rewards.__all__)
    with pytest.raises(AttributeError, match="RewardOption"):
        tdmr1_rewards.RewardOption  # noqa: B018


NETWORK = "imagereward_model.py"
"""A module of torch's networks. Other files import it only in functions."""


def imported(nodes) -> set[str]:
    """The top-level packages of the import statements among the nodes."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_the_package_imports_no_higher_layer_and_no_heavy_library():
    files = sorted(Path(tdmr1_rewards.__file__).parent.rglob("*.py"))
    assert len(files) >= 9
    for file in files:
        tree = ast.parse(file.read_text())
        assert not imported(ast.walk(tree)) & {"tdmr1_core", "tdmr1_cli"}, file
        if file.name != NETWORK:
            assert not imported(tree.body) & {"torch", "diffusers", "transformers", "open_clip", "easyocr"}, file
            loaded = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
            assert f"tdmr1_rewards.builtin.{NETWORK.removesuffix('.py')}" not in loaded, file
