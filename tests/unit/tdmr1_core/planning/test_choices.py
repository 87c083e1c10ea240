"""Micro-batch, recomputation and placement for a card: choices calculated by hand from the sizes of a model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from support.errors import raises

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import parse_assignments, resolve
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.planning.choices import choose, choose_for_run, even_size
from tdmr1_core.planning.estimate import Plan

pytestmark = pytest.mark.unit

GB = 10**9


@dataclass
class Model:
    """Sizes in GB. An iteration has 8 groups of 12 images."""

    weights: float = 10
    stored: float = 2
    """One image without recomputation."""
    recomputed: float = 0.5
    latents: float = 3
    decoding: float = 1
    """One image."""
    recomputes: bool = True

    def plan(self, config: RunConfig) -> Plan:
        memory, size = config.memory, config.batch.micro_batch
        images = config.batch.groups * config.batch.group_size
        assert size != "auto"
        size = min(size or images, images)
        if memory.recomputes and not self.recomputes:
            raise Tdmr1Error("no recomputation", "", code="model-unsupported")
        parts = {
            "weights": self.weights * GB,
            "trajectories": 0.0 if memory.trajectories == "cpu" else self.latents * GB,
            "text encoders in turn": 0.0,
            "activations": size * (self.recomputed if memory.recomputes else self.stored) * GB,
            "decoding": (size if memory.decodes_at_once else 1) * self.decoding * GB,
        }
        return Plan(config.batch.groups, images, 1, size, False, 32, parts, 1.0, 1.0, 1)


def settings(*assignments: str) -> RunConfig:
    small = {"batch": {"groups": 8, "group_size": 12}, "rewards": [{"name": "a"}]}
    return resolve([small, parse_assignments(assignments)])


def chosen(config: RunConfig) -> tuple:
    memory = config.memory
    return config.batch.micro_batch, memory.gradient_checkpointing, memory.trajectories, memory.decoder


@pytest.mark.parametrize(
    ("usable", "model", "expected", "most"),
    [
        # 13 GB are constant. 27 GB hold 13 images, of which a whole group of 12 is used.
        (40, Model(), (12, False, "device", "none"), 13),
        # 14 GB hold 7 images.
        (27, Model(), (7, False, "device", "none"), 7),
        # 7 GB hold 3 images, fewer than 4; with the latents on the CPU 10 GB hold 5.
        (20, Model(), (5, False, "cpu", "none"), 5),
        # 2 GB hold 1 image, or 2 with the latents on the CPU. Recomputed, 2 GB hold 4.
        (15, Model(), (4, True, "device", "sliced"), 4),
        # Recomputed, 1 GB holds 2 images; with the latents on the CPU 4 GB hold 8.
        (14, Model(), (8, True, "cpu", "sliced"), 8),
        # 200 GB hold all 96 images, also decoded at once.
        (213, Model(), (96, False, "device", "none"), 96),
        # 96 images in micro-batches of up to 65: 8 groups in 2 equal parts of 4 groups.
        (143, Model(), (48, False, "device", "none"), 65),
        # Recomputed, 27 GB hold 54 images: 8 groups in 2 parts of 4 groups. Decoded at once, 48 images need 48 GB.
        (40, Model(stored=8), (48, True, "device", "sliced"), 54),
        # The network cannot recompute: 3 or, with the latents on the CPU, 4 images of 7 GB.
        (40, Model(stored=7, recomputes=False), (4, False, "cpu", "none"), 4),
        # Nothing fits: everything that saves memory.
        (9, Model(), (1, True, "cpu", "sliced"), 0),
    ],
)
def test_choices(usable, model, expected, most):
    found = choose(settings(), usable / 0.92 * GB + 1, model.plan)
    assert chosen(found.config) == expected
    assert found.fits == (most > 0)
    assert found.planned == model.plan(found.config)
    assert (found.planned.peak <= usable * GB + 1) == found.fits
    assert {0: "not even one image fits", 96: "all images fit"}.get(most, f"up to {most} images fit") in found.lines[0]


def test_an_image_that_cannot_be_decoded_does_not_fit():
    found = choose(settings(), 40 * GB, Model(decoding=30).plan)
    assert not found.fits
    assert found.largest == 0
    assert chosen(found.config)[1:] == (True, "cpu", "sliced")


@pytest.mark.parametrize(
    ("sets", "usable", "expected"),
    [
        (["batch.micro_batch=5"], 40, (5, False, "device", "none")),
        (["batch.micro_batch=24"], 40, (24, True, "device", "none")),  # 24 decoded at once need 24 of 27 GB
        (["batch.micro_batch=null"], 40, (None, True, "cpu", "sliced")),  # 96 images do not fit
        (["memory.gradient_checkpointing=true"], 213, (96, True, "device", "none")),
        (["memory.gradient_checkpointing=false"], 15, (2, False, "cpu", "none")),
        (["memory.trajectories=cpu"], 40, (12, False, "cpu", "none")),
        (["memory.trajectories=device"], 20, (12, True, "device", "sliced")),
        (["memory.decoder=tiled"], 40, (12, False, "device", "tiled")),
        (["memory.gradient_checkpointing=true", "memory.decoder=none"], 40, (24, True, "device", "none")),
    ],
)
def test_what_is_set_is_not_chosen(sets, usable, expected):
    model = Model()
    found = choose(settings(*sets), usable / 0.92 * GB + 1, model.plan)
    assert chosen(found.config) == expected
    names = [each.split("=")[0] for each in sets]
    described = ", ".join(found.lines)
    for name in names:
        value = dict(each.split("=") for each in sets)[name]
        assert f"{name}={value} (as set" in described


def test_the_three_lines():
    found = choose(settings(), 24 * GB, Model().plan)
    assert found.lines == (
        "batch.micro_batch=4 (up to 4 images fit in 22.1 GB, which is 24 GB less 8%)",
        "memory.gradient_checkpointing=false (without recomputation 4 images fit, which is enough)",
        "memory.trajectories=device (sampled latents are 3 GB), "
        "memory.decoder=none (a micro-batch at once needs 4 GB), "
        "memory.text_encoders=auto (on the GPU only while they encode)",
    )
    small = choose(settings("memory.decoder=sliced"), 16 * GB, Model().plan)
    assert small.lines[1] == "memory.gradient_checkpointing=true (without recomputation only 2 images fit)"
    nothing = choose(settings(), 5 * GB, Model().plan)
    assert nothing.lines[0] == "batch.micro_batch=1 (not even one image fits in 4.6 GB, which is 5 GB less 8%)"
    assert nothing.lines[1] == "memory.gradient_checkpointing=true (without recomputation no image fits)"


@pytest.mark.parametrize(
    ("most", "expected"), [(1, 1), (5, 5), (7, 7), (10, 10), (11, 11), (12, 12), (23, 12), (25, 24), (95, 48), (96, 96)]
)
def test_micro_batches_divide_an_iteration_evenly(most, expected):
    """8 groups of 12 images."""
    assert even_size(most, 96, 12) == expected


def test_a_model_without_recomputation_that_must_recompute_is_an_error():
    with raises("model-unsupported"):
        choose(settings("memory.gradient_checkpointing=true"), 40 * GB, Model(recomputes=False).plan)


def test_nothing_is_chosen_without_a_gpu_or_without_auto():
    announced: list[str] = []
    entry = BUILTIN_MODELS[0]
    assert choose_for_run(settings(), entry, [None], announced.append) is None
    assert choose_for_run(settings(), entry, [24.0 * GB, None], announced.append) is None
    explicit = ["batch.micro_batch=4", "memory.gradient_checkpointing=false", "memory.decoder=none"]
    assert (
        choose_for_run(settings(*explicit, "memory.trajectories=device"), entry, [24.0 * GB], announced.append) is None
    )
    assert announced == []


def test_the_process_with_the_least_memory_decides():
    entry = next(entry for entry in BUILTIN_MODELS if entry.name == "sd3.5-tdm")
    config = resolve([entry.settings, {"rewards": [{"name": "a"}]}])
    rooms = [80.0 * GB, 40.0 * GB]
    found = choose_for_run(config, entry, rooms, lambda _: None)
    assert found is not None
    assert found.planned.processes == 2
    assert found.planned.peak <= 0.92 * 40 * GB
