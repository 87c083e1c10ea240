"""What annotations say about images and texts, and how a function is called because of them."""

import functools
import typing
from collections.abc import Sequence
from typing import Any, List, Optional, Tuple, Union  # noqa: UP035  (published rewards use these names)

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from PIL.Image import Image as PILImage
from support.errors import raises
from support.reward_batches import make_batch

from tdmr1_rewards.sources.annotations import read_annotation, read_annotations
from tdmr1_rewards.sources.foreign import adapt
from tdmr1_rewards.sources.signatures import recognise

pytestmark = pytest.mark.unit

TENSOR, ARRAY, PIL = ("tensor",), ("array",), ("pil",)
Pictures = list[PILImage]


@pytest.mark.parametrize(
    ("annotation", "forms", "many"),
    [
        (torch.Tensor, TENSOR, None),
        (torch.FloatTensor, TENSOR, None),
        (Optional[torch.Tensor], TENSOR, None),  # noqa: UP045
        (torch.Tensor | None, TENSOR, None),
        (list[torch.Tensor], TENSOR, True),
        (np.ndarray, ARRAY, None),
        (npt.NDArray[np.uint8], ARRAY, None),
        (List[np.ndarray], ARRAY, True),  # noqa: UP006
        (PILImage, PIL, False),
        (Optional[PILImage], PIL, False),  # noqa: UP045
        (list[PILImage], PIL, True),
        (list[Image], PIL, True),  # the module, which published rewards write too
        (List[Image.Image], PIL, True),  # noqa: UP006
        (Tuple[Image.Image, ...], PIL, True),  # noqa: UP006
        (Sequence[Image.Image] | None, PIL, True),
        (Pictures, PIL, True),
        (PILImage | list[PILImage], PIL, None),
        (Union[List[Image.Image], List[np.ndarray]], ("pil", "array"), True),  # noqa: UP006, UP007
        (list[PILImage] | torch.Tensor, ("pil", "tensor"), None),
        (list, PIL, True),
        (List, PIL, True),  # noqa: UP006
        (list[Any], PIL, True),
        (Sequence[object], PIL, True),
        (Any, (), None),
        (object, (), None),
        (str, (), False),
        (list[str], (), True),
        (dict, (), False),
        (list[dict[str, Any]], (), True),
        (dict[str, Any], (), False),
    ],
)
def test_what_an_annotation_says(annotation, forms, many):
    def fn(images: annotation):
        """A function with this annotation."""

    found = read_annotations(fn)["images"]
    assert (found.forms, found.many) == (forms, many)


@pytest.mark.parametrize(
    ("text", "forms", "many"),
    [
        ("torch.Tensor", TENSOR, None),
        ("Tensor | None", TENSOR, None),
        ("'Tensor'", TENSOR, None),
        ("Float[Tensor, 'n 3 h w']", TENSOR, None),
        ("torchvision.tv_tensors._image.Image", TENSOR, None),
        ("list[Image.Image]", PIL, True),
        ("typing.List[PIL.PngImagePlugin.PngImageFile]", PIL, True),
        ("Optional[List['Image.Image']]", PIL, True),
        ("np.ndarray", ARRAY, None),
        ("Union[Optional[list[np.ndarray]], tuple[np.ndarray, ...]]", ARRAY, True),
        ("Batch", (), None),
        ("ImageInput", (), None),
        ("Callable[[Tensor], list[Image]]", ("tensor",), None),
        ("", (), None),
        ("None", (), None),
    ],
)
def test_an_annotation_as_text(text, forms, many):
    found = read_annotation(text)
    assert (found.forms, found.many) == (forms, many)


@pytest.mark.parametrize(
    "text", ["str", "list[str]", "List[Union[str, bytes]]", "pathlib.Path", "list[BytesIO] | None"]
)
def test_image_files_are_recognized(text):
    assert read_annotation(text).is_file


def test_names_that_cannot_be_looked_up_are_read_as_text():
    namespace = {}
    exec("def fn(images: 'list[Image.Image]', prompts: 'list[Missing]'): ...", namespace)
    assert read_annotations(namespace["fn"])["images"].forms == PIL


class Scorer:
    """A published OCR scorer: annotated with two formats, both of which it accepts."""

    @torch.no_grad()
    def __call__(self, images: Union[List[Image.Image], List[np.ndarray]], prompts: List[str]):  # noqa: UP006, UP007
        return [float(np.asarray(image).mean()) for image in images]


def test_the_annotations_of_objects_methods_partials_and_decorated_functions():
    for target in (Scorer(), Scorer().__call__, functools.partial(Scorer()), functools.partial(Scorer().__call__)):
        assert read_annotations(target)["images"].forms == ("pil", "array")
        assert recognise(target, "x").image_form == "pil"
    assert recognise(Scorer, "x").image_form == "pil"


# Each function returns the type of what it received. Annotations are in the style of published rewards.


def kind_of(value: Any) -> str:
    """A value in short: "tensor 2x3x4x5", "list of array 4x5x3", "Image 5x4"."""
    if isinstance(value, list):
        return f"list of {kind_of(value[0])}" if value else "list"
    if isinstance(value, Image.Image):
        return f"Image {value.width}x{value.height}"
    if hasattr(value, "shape"):
        return f"{'tensor' if isinstance(value, torch.Tensor) else 'array'} {'x'.join(map(str, value.shape))}"
    return type(value).__name__


def received(declare: str) -> list[dict[str, str]]:
    """What the parameters of a function `fn(<declare>)` receive at each call for two images of 4 x 5 pixels."""
    calls: list[dict[str, str]] = []
    names = [part.split(":")[0].strip() for part in declare.split(";")]
    namespace = {"calls": calls, "kind_of": kind_of, "torch": torch, "np": np, "Image": Image, "typing": typing}
    code = f"def fn({declare.replace(';', ',')}):\n    calls.append({{n: kind_of(v) for n, v in locals().items()}})\n"
    exec(code + f"    return [0.5] * (len({names[0]}) if isinstance({names[0]}, list) else 1)", namespace)
    adapt(namespace["fn"])(make_batch("first", "second"))
    return calls


@pytest.mark.parametrize(
    ("declare", "calls"),
    [
        ("images: list[Image.Image]; prompts; metadata", [{"images": "list of Image 5x4", "prompts": "list of str"}]),
        ("images: list[torch.Tensor]; prompts: list[str]", [{"images": "list of tensor 3x4x5"}]),
        ("images: list[np.ndarray]; prompts: list[str]", [{"images": "list of array 4x5x3"}]),
        ("image: list[Image.Image]; prompt: list[str]", [{"image": "list of Image 5x4", "prompt": "list of str"}]),
        ("images: Image.Image; prompts: str", [{"images": "Image 5x4", "prompts": "str"}] * 2),
        ("image: torch.Tensor; prompt: str", [{"image": "tensor 1x3x4x5", "prompt": "str"}] * 2),
        ("image: np.ndarray; prompt", [{"image": "array 4x5x3", "prompt": "str"}] * 2),
        ("image: Image.Image; prompts: list[str]", [{"image": "Image 5x4", "prompts": "list of str"}] * 2),
        ("images: list[Image.Image]; prompt: str", [{"images": "list of Image 5x4", "prompt": "str"}] * 2),
        ("image; prompt; metadata: dict", [{"image": "Image 5x4", "prompt": "str", "metadata": "dict"}] * 2),
        ("image; prompt; metadata: list[dict]", [{"image": "Image 5x4", "metadata": "list of dict"}] * 2),
        ("prompts; images", [{"images": "list of Image 5x4", "prompts": "list of str"}]),
        ("prompt; images", [{"images": "list of Image 5x4", "prompt": "list of str"}]),
    ],
)
def test_a_function_receives_what_it_declares(declare, calls):
    found = received(declare)
    assert len(found) == len(calls)
    for one, expected in zip(found, calls, strict=True):
        assert {name: one[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("declare", "form"),
    [
        ("images, prompts, metadata", "tensor"),
        ("images, metadata", "tensor"),
        ("pixels, prompts", "tensor"),
        ("prompts, pixels", "tensor"),
        ("prompts, images, metadata", "pil"),
        ("prompt, images", "pil"),
        ("image, prompt", "pil"),
        ("prompts, completions", "pil"),
        ("images: torch.Tensor, prompts", "tensor"),
        ("prompts, images: torch.Tensor", "tensor"),
        ("images: list[Image.Image] | torch.Tensor, prompts", "tensor"),
        ("images: np.ndarray, prompts, metadata", "array"),
        ("images, prompts", None),
        ("images", None),
        ("samples, captions", None),
    ],
)
def test_which_image_format_a_function_declares(declare, form):
    namespace = {"torch": torch, "np": np, "Image": Image}
    exec(f"def fn({declare}): ...", namespace)
    assert recognise(namespace["fn"], "x").image_form == form


@pytest.mark.parametrize("annotation", ["str", "list[str]", "bytes"])
def test_a_function_of_image_files_is_refused(annotation):
    namespace = {}
    exec(f"def fn(prompt: str, image: {annotation}): ...", namespace)
    with raises("reward-signature", reward="x") as caught:
        recognise(namespace["fn"], "x")
    assert f"declares image as {annotation}" in caught.value.message
