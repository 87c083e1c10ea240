"""Every built-in reward has a complete spec, and its modules import no large package."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest

from tdmr1_core.prompts.sets import PROMPT_SETS
from tdmr1_rewards.api import RewardExample
from tdmr1_rewards.builtin import SPECS
from tdmr1_rewards.options import RewardOptions

pytestmark = pytest.mark.unit

NAMES = [spec.name for spec in SPECS]
HEAVY = ("torch", "transformers", "open_clip", "easyocr", "rapidocr", "onnxruntime", "requests", "cv2", "pytesseract")


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_a_spec_is_complete(spec):
    options = pkgutil.resolve_name(spec.options)
    assert issubclass(options, RewardOptions)
    assert options.__doc__
    assert [name for name, field in options.model_fields.items() if not field.description] == []
    factory = pkgutil.resolve_name(spec.factory)
    assert factory.__doc__
    assert callable(factory)
    assert any(spec.default_prompts in sets for sets in PROMPT_SETS.values())
    presets = {path.name for path in (resources.files("tdmr1_core") / "presets").iterdir()}
    assert spec.default_preset is None or f"{spec.default_preset}.yaml" in presets
    assert bool(spec.install) <= bool(spec.requires)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.examples], ids=lambda spec: spec.name)
def test_examples_are_good_and_bad_rgb_images(spec):
    examples = pkgutil.resolve_name(spec.examples)()
    assert all(isinstance(example, RewardExample) for example in examples)
    assert {example.good for example in examples} == {True, False}
    for example in examples:
        pixels = np.asarray(example.image)
        assert (pixels.dtype, pixels.ndim, pixels.shape[-1]) == (np.uint8, 3, 3)


def test_the_modules_of_rewards_import_no_large_package():
    modules = sorted({spec.factory.partition(":")[0] for spec in SPECS})
    code = f"import {', '.join(modules)}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
