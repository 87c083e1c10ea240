"""The same reward in every form that other toolkits use: 60 objects, named FORM_MODE_KIND_SCOPE.

FORM is the format of the images that the signature shows: pil, tensor, array. MODE is sync or async. KIND is function,
object, class, factory or module. SCOPE is pointwise (the mean brightness, 0 to 1) or groupwise (the same minus the mean
of the images of the same prompt, which only a RewardSpec with groupwise=True makes correct).
"""

from __future__ import annotations

import asyncio
from typing import List  # noqa: UP035  (published rewards use it)

import numpy as np
import torch
from PIL import Image

from tdmr1_rewards import RewardSpec

FORMS = ("pil", "tensor", "array")
MODES = ("sync", "async")
KINDS = ("function", "object", "class", "factory", "module")
SCOPES = ("pointwise", "groupwise")


def brightness(images):
    """The mean of each image, 0 to 1. Asserts the type, so that a wrong format is an error."""
    if isinstance(images, torch.Tensor):
        assert images.dtype == torch.float32
        assert images.shape[1] == 3
        return images.mean((1, 2, 3)).double().tolist()
    if isinstance(images, np.ndarray):
        assert images.dtype == np.uint8
        assert images.shape[-1] == 3
        return (images.astype(np.float64).mean((1, 2, 3)) / 255).tolist()
    assert all(isinstance(image, Image.Image) for image in images)
    return [float(np.asarray(image, np.float64).mean() / 255) for image in images]


def relative(scores, prompts):
    means = {p: np.mean([s for s, q in zip(scores, prompts, strict=True) if p == q]) for p in prompts}
    return [score - means[prompt] for score, prompt in zip(scores, prompts, strict=True)]


def make_function(form, mode, scope):
    """A function with the published signature of its format, which rejects the other formats."""
    kinds = {"pil": list, "tensor": torch.Tensor, "array": np.ndarray}

    def score(images, prompts):
        assert type(images) is kinds[form]
        scores = brightness(images)
        return relative(scores, prompts) if scope == "groupwise" else scores

    async def later(images, prompts):
        await asyncio.sleep(0)
        return score(images, prompts)

    used = score if mode == "sync" else later
    if form == "pil":  # as the scorers of flow_grpo: the prompts first
        return (lambda prompt, images: used(images, prompt)) if scope == "pointwise" else _annotated(used)
    if form == "tensor":  # as flow_grpo's rewards
        return lambda images, prompts, metadata: used(images, prompts)

    def of_array(images: np.ndarray, prompts: List[str]):  # noqa: UP006
        return used(images, prompts)

    return of_array


def _annotated(used):
    def of_pil(images: List[Image.Image], prompts: List[str]):  # noqa: UP006
        return used(images, prompts)

    return of_pil


def make_class(form, mode, scope, base=object, method="__call__"):
    """A class whose objects have the method; without arguments, as flow_grpo's scorers with a default device."""
    function = make_function(form, mode, scope)
    if form == "tensor":

        def call(self, images, prompts, metadata):
            return function(images, prompts, metadata)
    elif form == "array":

        def call(self, images: np.ndarray, prompts: List[str]):  # noqa: UP006
            return function(images, prompts)
    else:

        def call(self, images: List[Image.Image], prompts: List[str]):  # noqa: UP006
            return function(prompts, images) if scope == "pointwise" else function(images, prompts)

    return type("Scorer", (base,), {method: call, "__module__": __name__})


def make(form, mode, kind, scope):
    if kind == "function":
        return make_function(form, mode, scope)
    if kind == "class":
        return make_class(form, mode, scope)
    if kind == "object":
        return make_class(form, mode, scope, method="score")()
    if kind == "module":
        return make_class(form, mode, scope, torch.nn.Module, "forward")
    return lambda device: make_function(form, mode, scope)


ALL = {(f, m, k, s): "_".join((f, m, k, s)) for f in FORMS for m in MODES for k in KINDS for s in SCOPES}
"""The choices and the name of each reward."""
for choices, name in ALL.items():
    globals()[name] = make(*choices)
    if choices[3] == "groupwise":
        globals()[f"{name}_spec"] = RewardSpec(
            name=name, summary="brightness against that of its group", factory=f"foreign_rewards:{name}", groupwise=True
        )
