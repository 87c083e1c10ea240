import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from support.errors import raises

from tdmr1_rewards.api import RewardBatch, RewardContext, RewardResult
from tdmr1_rewards.options import RewardOptions
from tdmr1_rewards.sources.answers import read_answer
from tdmr1_rewards.sources.foreign import adapt
from tdmr1_rewards.sources.signatures import recognise

pytestmark = pytest.mark.unit

PIXELS = np.array([0, 51, 255], np.uint8)[:, None, None, None].repeat(2, 1).repeat(4, 2).repeat(3, 3)  # (3, 2, 4, 3)


def make_batch(images=PIXELS, metadata=None):
    count = len(images)
    return RewardBatch(
        images=images,
        prompts=[f"prompt {i}" for i in range(count)],
        metadata=metadata or [{"tag": i} for i in range(count)],
        group_ids=[0] * count,
        image_ids=list(range(count)),
        context=RewardContext(None, 0, 0),
    )


PIL = [Image.fromarray(image) for image in PIXELS]


def brightness(images, prompts, metadata):
    assert isinstance(images, torch.Tensor)
    assert images.shape == (3, 3, 2, 4)
    return images.mean((1, 2, 3)), {}


def jpeg_score():
    def fn(images, prompts, metadata):
        images = (images * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return np.array([image.mean() / 255 for image in images.transpose(0, 2, 3, 1)]), {}

    return fn


def ocr_score(device):
    def fn(images, prompts, metadata):
        assert device == "meta"
        return [image.mean().item() for image in images], {}

    return fn


@pytest.mark.parametrize("images", [PIXELS, PIL])
@pytest.mark.parametrize("target", [brightness, jpeg_score])
def test_a_flow_grpo_function_or_factory(target, images):
    result = adapt(target)(make_batch(images))
    assert result.scores == pytest.approx([0, 0.2, 1])
    assert all(type(score) is float for score in result.scores)
    assert result.details is None


def test_a_factory_with_a_device_is_called_by_setup():
    reward = adapt(ocr_score, {"image_format": "array"})
    reward.setup("meta")
    assert reward(make_batch()).scores == pytest.approx([0, 51, 255])


@pytest.mark.parametrize(
    ("form", "kind"), [("tensor", torch.Tensor), ("array", np.ndarray), ("pil", list), (None, torch.Tensor)]
)
def test_the_form_of_the_images_can_be_chosen(form, kind):
    def fn(images, prompts, metadata):
        assert type(images) is kind
        return [1.0] * len(images), {}

    assert adapt(fn, {"image_format": form} if form else {})(make_batch()).scores == [1.0] * 3


def test_images_are_arrays_if_torch_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    def fn(images, prompts, metadata):
        assert images.dtype == np.uint8
        assert images.shape == (3, 2, 4, 3)
        return images[:, 0, 0, 0]

    assert adapt(fn)(make_batch()).scores == [0, 51, 255]


def test_minus_ten_becomes_none_for_flow_grpo_only():
    assert adapt(lambda images, prompts, metadata: ([0.5, -10, -10.0], {}))(make_batch()).scores == [0.5, None, None]
    assert adapt(lambda completions, **columns: [0.5, -10, None])(make_batch()).scores == [0.5, -10, None]


def test_a_batch_reaches_the_function_unchanged():
    def fn(images, prompts, metadata):
        assert prompts == ["prompt 0", "prompt 1", "prompt 2"]
        assert metadata == [{"tag": 0}, {"tag": 1}, {"tag": 2}]
        metadata[0]["tag"] = "changed"
        return [0, 1, 2], {}

    batch = make_batch()
    assert adapt(fn)(batch).scores == [0, 1, 2]
    assert batch.metadata[0] == {"tag": 0}


def test_the_strict_parameter_of_geneval_is_passed():
    def fn(images, prompts, metadatas, only_strict):
        assert only_strict is True
        return [0.1, 0.2, 0.3], [1, 0, 1], [1, 0, 1], {}, {}

    assert adapt(fn)(make_batch()).scores == [0.1, 0.2, 0.3]


def test_the_average_of_several_scores_is_used():
    def fn(images, prompts, metadata, ref_images=None, only_strict=True):
        return {"avg": [0.5, 0.25, 0.0], "ocr": torch.tensor([1.0, 0.5, 0.0])}, {}

    result = adapt(fn)(make_batch())
    assert result.scores == [0.5, 0.25, 0.0]
    assert result.details == [{"ocr": 1.0}, {"ocr": 0.5}, {"ocr": 0.0}]


@pytest.mark.parametrize(
    ("info", "details"),
    [
        ({}, None),
        ({"precision": np.array([0.5, 1, 2]), "model": "m", "pair": [1, 2]}, [{"precision": p} for p in (0.5, 1, 2)]),
        ([{"a": 1}, {"a": 2}, {}], [{"a": 1}, {"a": 2}, {}]),
        ([{"a": 1}], None),
        (None, None),
    ],
)
def test_info_per_image_becomes_details(info, details):
    assert read_answer(([1, 2, 3], info), 3, "x") == ([1, 2, 3], details)


@pytest.mark.parametrize(
    ("answer", "count", "scores"),
    [
        (torch.tensor([[1.0], [2.0]], requires_grad=True), 2, [1.0, 2.0]),
        (torch.tensor([1.5, 2.5], dtype=torch.bfloat16), 2, [1.5, 2.5]),
        (np.array([[1], [2]]), 2, [1, 2]),
        ([torch.tensor(1.0), np.float32(2), None], 3, [1.0, 2.0, None]),
        ((0.5, 0.25), 2, [0.5, 0.25]),
        ((None, 0.25), 2, [None, 0.25]),
        (torch.tensor(3.0), 1, [3.0]),
        (0.5, 1, [0.5]),
        (["0.5"], 1, ["0.5"]),
    ],
)
def test_scores_in_any_container_are_read(answer, count, scores):
    assert read_answer(answer, count, "x") == (scores, None)


@dataclass
class Output:
    """Like the answer of a reward model of Flow-Factory."""

    rewards: object
    extra_info: object = None


@pytest.mark.parametrize(
    ("answer", "details"),
    [
        (Output(torch.tensor([1.0, 2.0])), None),
        (Output(np.array([[1.0], [2.0]]), {"a": [3, 4]}), [{"a": 3}, {"a": 4}]),
        (RewardResult([1.0, 2.0], [{"b": 1}, {"b": 2}]), [{"b": 1}, {"b": 2}]),
        ({"scores": [1.0, 2.0], "c": [5, 6]}, [{"c": 5}, {"c": 6}]),
        ({"rewards": [1.0, 2.0], "avg": [1.0, 2.0]}, [{"rewards": 1.0}, {"rewards": 2.0}]),
    ],
)
def test_scores_under_a_known_name_are_read(answer, details):
    assert read_answer(answer, 2, "x") == ([1.0, 2.0], details)


def test_an_answer_without_scores_is_rejected():
    with raises("reward-result", reward="x", type="NoneType"):
        read_answer(None, 1, "x")
    with raises("reward-result", reward="x", keys=["ocr"]):
        read_answer({"ocr": [1]}, 1, "x")


ROWS = [torch.tensor([[1.0, 0.1], [2.0, 0.2]]), np.array([[1.0, 0.1], [2.0, 0.2]]), [[1.0, 0.1], [2.0, 0.2]]]


@pytest.mark.parametrize("rows", ROWS)
def test_of_several_numbers_for_an_image_the_column_is_used(rows):
    def score(images, prompts, metadata):
        return rows

    with raises("reward-result", reward="score", found=2, expected=1) as caught:
        adapt(score)(make_batch(PIXELS[:2]))
    assert "`column`" in caught.value.hint
    assert adapt(score, {"column": 0})(make_batch(PIXELS[:2])).scores == [1.0, 2.0]
    assert adapt(score, {"column": 1})(make_batch(PIXELS[:2])).scores == pytest.approx([0.1, 0.2])
    with raises("reward-result", column=2):
        adapt(score, {"column": 2})(make_batch(PIXELS[:2]))
    for wrong in (-1, True, "mean"):
        with raises("reward-options", options=["column"]):
            adapt(score, {"column": wrong})


def test_the_column_of_one_image_at_a_time():
    def score(prompt, image):
        return torch.tensor([[0.7, 0.1]])

    assert adapt(score, {"column": 0})(make_batch()).scores == pytest.approx([0.7] * 3)
    with raises("reward-result", found=2):
        adapt(score)(make_batch())


def test_an_own_parameter_named_column_is_not_taken_over():
    def score(images, prompts, metadata, column="red"):
        return [float(column == "blue")] * len(images)

    assert adapt(score, {"column": "blue"})(make_batch()).scores == [1.0] * 3


def test_gradients_are_disabled():
    weight = torch.ones((), requires_grad=True)

    def fn(images, prompts, metadata):
        scores = (images * weight).mean((1, 2, 3))
        assert not scores.requires_grad
        return scores, {}

    assert adapt(fn)(make_batch()).scores == pytest.approx([0, 0.2, 1])


def test_a_trl_function_with_named_columns_only():
    def reward(prompts, completions, tag):
        assert all(isinstance(image, Image.Image) for image in completions)
        return [float(t) if t else None for t in tag]

    assert adapt(reward)(make_batch()).scores == [None, 1.0, 2.0]
    with raises("reward-metadata", reward="reward", key="tag"):
        adapt(reward)(make_batch(metadata=[{}, {}, {}]))


def test_a_trl_function_with_every_column():
    def reward(completions, **columns):
        assert columns == {
            "prompts": ["prompt 0", "prompt 1", "prompt 2"],
            "tag": [0, None, None],
            "other": [None, 5, None],
        }
        return [0.0] * len(completions)

    assert adapt(reward)(make_batch(metadata=[{"tag": 0}, {"other": 5}, {}])).scores == [0.0] * 3


def test_an_asynchronous_trl_function():
    async def reward(prompts, completions, scale=1.0, **columns):
        return [scale * t for t in columns["tag"]]

    adapted = adapt(reward, {"scale": 2.0})
    assert adapted(make_batch()).scores == [0, 2, 4]

    async def in_a_notebook():
        return adapted(make_batch())

    with ThreadPoolExecutor(1) as thread:  # other tests may have left an event loop in this thread
        assert thread.submit(asyncio.run, in_a_notebook()).result().scores == [0, 2, 4]


def test_an_asynchronous_function_runs_without_gradients():
    async def reward(prompts, completions, **columns):
        assert not torch.is_grad_enabled()
        return [0.0] * len(prompts)

    assert adapt(reward, {})(make_batch()).scores == [0, 0, 0]


def test_the_minus_ten_of_flow_grpo_is_a_reason():
    result = adapt(lambda images, prompts, metadata: ([0.5, -10, None], {}))(make_batch())
    assert result.scores == [0.5, None, None]
    assert result.details == [{}, {"reason": "not scored (-10)"}, {}]
    own = {"reason": ["a", "b", "c"]}
    result = adapt(lambda images, prompts, metadata: ([0.5, -10, None], own))(make_batch())
    assert [entry["reason"] for entry in result.details] == ["a", "b", "c"]


class Table:
    """Like a data frame: iterating gives the names of its columns."""

    def keys(self):
        return ["a", "b", "c"]

    def __iter__(self):
        return iter(self.keys())


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ({0.1, 0.2, 0.3}, "set"),
        (frozenset({0.1, 0.2, 0.3}), "frozenset"),
        ({"a": 1, "b": 2}.keys(), "dict_keys"),
        ({"a": 1, "b": 2}.values(), "dict_values"),
        ("123", "str"),
        (Table(), "Table"),
    ],
)
def test_scores_without_an_order_are_refused(scores, kind):
    for answer in (scores, (scores, {})):
        with raises("reward-result", type=kind):
            read_answer(answer, 3, "x")


class Imscore:
    """An object like the models of imscore."""

    def __call__(self, *args, **kwargs):
        raise AssertionError("the __call__ of a torch module is not a reward")

    def score(self, pixels, prompts):
        assert pixels.shape == (3, 3, 2, 4)
        assert len(prompts) == 3
        return pixels.mean((1, 2, 3)).unsqueeze(1)


class ImageRewardLike:
    """An object like the model of ImageReward."""

    def score(self, prompt, image):
        assert isinstance(image, Image.Image)
        return image.getpixel((0, 0))[0] + int(prompt[-1])


def test_scorer_objects_are_adapted():
    assert adapt(Imscore())(make_batch()).scores == pytest.approx([0, 0.2, 1])
    assert adapt(Imscore)(make_batch()).scores == pytest.approx([0, 0.2, 1])
    assert adapt(ImageRewardLike())(make_batch()).scores == [0, 52, 257]


def test_a_function_of_one_image_may_return_an_info():
    assert adapt(lambda image, prompt: (torch.tensor([0.5]), {}))(make_batch()).scores == [0.5] * 3


def native(batch):
    return RewardResult([1.0] * len(batch))


class Native:
    def __call__(self, batch):
        return native(batch)


def test_a_reward_of_tdmr1_is_returned_unchanged():
    assert adapt(native) is native
    reward = Native()
    assert adapt(reward) is reward
    assert isinstance(adapt(Native), Native)
    assert isinstance(adapt(lambda: Native()), Native)


class Scaled(RewardOptions):
    scale: float = 1.0


class WithOptions:
    def __init__(self, options: Scaled) -> None:
        self._scale = options.scale

    def __call__(self, batch):
        return RewardResult([self._scale] * len(batch))


def make_with_options(options: Scaled):
    return WithOptions(options)


def test_a_reward_options_class_validates_the_options():
    for target in (WithOptions, make_with_options):
        assert recognise(target, "x").description == "a tdmr1 reward with Scaled"
        assert adapt(target, {"scale": 3})(make_batch()).scores == [3.0] * 3
        with raises("reward-options", options=["scael"]):
            adapt(target, {"scael": 3})


def test_the_other_parameters_of_a_function_are_options():
    def score(images, prompts, metadata, scale=1.0):
        return [scale] * len(images), {}

    def make(scale=1.0):
        return functools.partial(score, scale=scale)

    def own(batch, scale=1.0):
        return RewardResult([scale] * len(batch))

    for target in (score, make, own):
        assert adapt(target)(make_batch()).scores == [1.0] * 3
        assert adapt(target, {"scale": 3.0})(make_batch()).scores == [3.0] * 3
        with raises("reward-options", options=["scael"]) as caught:
            adapt(target, {"scael": 3.0})
        assert caught.value.hint == "did you mean 'scale'?"
    with raises("reward-options", options=["image_format"], found="jpeg"):
        adapt(score, {"image_format": "jpeg"})


@pytest.mark.parametrize(
    ("target", "style", "description"),
    [
        (brightness, "flow_grpo", "a flow_grpo-style function, brightness(images, prompts, metadata)"),
        (jpeg_score, "factory", "a factory, jpeg_score()"),
        (ocr_score, "factory", "a factory, ocr_score(device)"),
        (Imscore(), "scorer", "a scorer object, .score(pixels, prompts)"),
        (Imscore, "factory", "a class that makes a scorer object, .score(pixels, prompts)"),
        (ImageRewardLike(), "scorer", "a scorer object, .score(prompt, image)"),
        (Native, "factory", "a class that makes a tdmr1 reward, __call__(batch)"),
        (Native(), "tdmr1", "a tdmr1 reward, Native(batch)"),
        (lambda b: b, "tdmr1", "a tdmr1 reward, <lambda>(b)"),
        (lambda images=None, prompts=None: 0, "flow_grpo", "a flow_grpo-style function, <lambda>(images, prompts)"),
        (lambda prompt, image: 0, "flow_grpo", "a function of one image at a time, <lambda>(prompt, image)"),
        (lambda completions, **kw: 0, "trl", "a TRL-style function, <lambda>(completions, **kw)"),
    ],
)
def test_conventions_are_recognized_and_described(target, style, description):
    recognised = recognise(target, "x")
    assert (recognised.style, recognised.description) == (style, description)


class NeedsMuch:
    def __init__(self, path, scale=1.0):
        self.score = scale * len(path)

    def __call__(self, batch):
        return RewardResult([self.score] * len(batch))


def multi_score(device, score_dict):
    """Like the factory of flow_grpo."""

    def fn(images, prompts, metadata, ref_images=None, only_strict=True):
        return {
            "avg": [sum(score_dict.values())] * len(images),
            **{k: [v] * len(images) for k, v in score_dict.items()},
        }, {}

    return fn


def make_declared(path: str, threshold: float):
    return lambda images, prompts, metadata: [threshold + len(path)] * len(images)


def make_undeclared(weights):
    return lambda images, prompts, metadata: [float(weights)] * len(images)


@pytest.mark.parametrize(
    ("target", "options", "score"),
    [
        (NeedsMuch, {"path": "abc"}, 3),
        (NeedsMuch, {"path": "abc", "scale": 2.0}, 6),
        (multi_score, {"score_dict": {"ocr": 1, "clip": 4}}, 5),
        (make_declared, {"path": "ab", "threshold": 0.5}, 2.5),
        (make_undeclared, {"weights": 7}, 7),
    ],
)
def test_required_parameters_of_a_factory_are_options(target, options, score):
    reward = adapt(target, options)
    if hasattr(reward, "setup"):
        reward.setup("cpu")
    assert reward(make_batch()).scores == [score] * 3


@pytest.mark.parametrize(
    ("target", "options", "missing"),
    [
        (NeedsMuch, {}, ["path"]),
        (multi_score, {}, ["score_dict"]),
        (make_declared, {"path": "a"}, ["threshold"]),
        (make_declared, {}, ["path", "threshold"]),
    ],
)
def test_a_missing_required_option_is_named(target, options, missing):
    with raises("reward-options", options=missing) as caught:
        adapt(target, options)
    assert all(repr(name) in caught.value.message for name in missing)


class Forward(torch.nn.Module):
    def forward(self, pixels, prompts):
        return pixels.mean((1, 2, 3))


class ForwardAndScore(torch.nn.Module):
    def forward(self, images):
        raise AssertionError("the forward of a module with a score is not the reward")

    def score(self, pixels, prompts):
        return pixels.mean((1, 2, 3))


class ForwardBatch(torch.nn.Module):
    def forward(self, batch: RewardBatch):
        return RewardResult([0.5] * len(batch))


class ForwardFeatures(torch.nn.Module):
    def forward(self, features):
        return features


@pytest.mark.parametrize(
    ("kind", "scores", "description"),
    [
        (Forward, [0, 0.2, 1], "a torch module, forward(pixels, prompts)"),
        (ForwardAndScore, [0, 0.2, 1], "a scorer object, .score(pixels, prompts)"),
        (ForwardBatch, [0.5] * 3, "a tdmr1 reward, forward(batch)"),
    ],
)
def test_a_torch_module_may_have_only_a_forward(kind, scores, description):
    assert recognise(kind(), "x").description == description
    for target in (kind, kind()):
        assert adapt(target)(make_batch()).scores == pytest.approx(scores)


def test_hooks_of_a_torch_module_run():
    module = Forward()
    module.register_forward_hook(lambda module, inputs, output: output + 1)
    assert adapt(module)(make_batch()).scores == pytest.approx([1, 1.2, 2])


@pytest.mark.parametrize(
    ("target", "quoted"),
    [
        (lambda a, b: 0, "<lambda>(a, b)"),
        (lambda *args, **kwargs: 0, "<lambda>(*args, **kwargs)"),
        (lambda prompts: 0, "<lambda>(prompts)"),
        (lambda images, prompts, threshold: 0, "<lambda>(images, prompts, threshold)"),
        (3, "a int"),
        (ForwardFeatures(), "forward(features)"),
        (ForwardFeatures, "the objects of x"),
        (type("Empty", (), {}), "the objects of x"),
    ],
)
def test_an_unknown_convention_is_rejected(target, quoted):
    with raises("reward-signature", reward="x") as caught:
        recognise(target, "x")
    assert quoted in caught.value.message


def test_a_factory_that_fails_or_returns_no_reward():
    with raises("reward-build", reward="<lambda>", error="ZeroDivisionError: division by zero"):
        adapt(lambda: 1 / 0)
    for factory in (lambda: 1, lambda: lambda: 1):
        with raises("reward-signature"):
            adapt(factory)
