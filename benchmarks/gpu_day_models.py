"""The parts of `gpu_day.py` that measure the stages of a model at full size, with different settings of `memory`.

The variants of a part share the random weights of one network, because making them takes longer than most
measurements. Each variant has new LoRAs and optimizers. Text encoders and rewards are omitted, as in `full_size.py`.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from full_size import ENTRIES, build, measure, planned_update, random_pipeline
from gpu_day import Results, Row

from tdmr1_core.build.parts import PRECISIONS
from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import resolve
from tdmr1_core.conformance.subject import Subject
from tdmr1_core.conformance.tiny_pipelines import make_tiny_pipeline
from tdmr1_core.distributed import ALONE
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.attention import check_attention
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.planning.estimate import read_architecture
from tdmr1_core.planning.passes import passes_an_image

Memory = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A model at one image size (height = width, in pixels), the images of its group, and the variants of `memory`."""

    model: str
    size: int
    images: int
    micro_batch: int
    variants: Mapping[str, Memory]
    memory: Memory = field(default_factory=dict)
    """Settings of all variants."""
    fresh: bool = False
    """Whether each variant changes the frozen weights, so that it needs new ones."""


RECOMPUTED = {"gradient_checkpointing": True}
SD35 = Case(
    "sd3.5-tdm",
    512,
    24,
    12,
    {
        "defaults": {},
        "merged LoRA": {"lora": "merged"},
        "attention cudnn": {"attention": "cudnn"},
        "attention flash": {"attention": "flash"},
        "attention efficient": {"attention": "efficient"},
        "gradient checkpointing": RECOMPUTED,
    },
)
AT_1024 = {name: SD35.variants[name] for name in ("defaults", "merged LoRA", "attention cudnn", "attention flash")}
QUANTIZED = {"nf4, 8-bit AdamW": {"weights": "nf4", "optimizer": "8bit"}, "8-bit weights": {"weights": "8bit"}}
CASES = {
    "sd3.5-tdm": SD35,
    "z-image-turbo": Case("z-image-turbo", 1024, 2, 2, AT_1024, RECOMPUTED),
    "flux2-klein-4b": Case("flux2-klein-4b", 1024, 2, 2, AT_1024, RECOMPUTED),
    "quantized": replace(SD35, variants=QUANTIZED, fresh=True),
    "compile": replace(SD35, variants={"compile": {"compile": True}}),
}
TOY_SIZE, TOY_IMAGES = 64, 2


def measure_variants(results: Results, part: str, toy: bool) -> None:
    """Measure the variants of a part that are not in the results."""
    case = CASES[part]
    entry = replace(ENTRIES[case.model], height=case.size, width=case.size)
    if toy:
        case = replace(case, size=TOY_SIZE, images=TOY_IMAGES, micro_batch=TOY_IMAGES)
        entry = toy_entry(entry.family, results.path.parent)
    networks = Networks(entry, case.fresh)
    for name, config in settings(case).items():
        results.measure(name, partial(_row, entry, config, networks))


@dataclass
class Networks:
    """The random networks of a model, which are made when they are first needed."""

    entry: ModelEntry
    fresh: bool
    """Whether new ones are made each time."""
    pipeline: Any = None

    def get(self, config: RunConfig) -> Any:
        """The parts of the pipeline, after the memory of the last engine is freed."""
        if self.fresh:
            self.pipeline = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.pipeline is None:
            self.pipeline = random_pipeline(self.entry, read_architecture(self.entry), config)
        return self.pipeline


def toy_entry(family: str, folder: Path) -> ModelEntry:
    """A tiny model of a family, whose configs are written to a new folder in `folder`."""
    made = make_tiny_pipeline(family, Path(tempfile.mkdtemp(prefix="toy-", dir=folder)) / family)
    entry = Subject.tiny(made).entry
    return replace(entry, height=TOY_SIZE, width=TOY_SIZE, rank=4, alpha=8.0)


def settings(case: Case) -> dict[str, RunConfig]:
    """The settings of each variant: those of the model, with one optimizer step per stage, for one group of images."""
    found = {}
    for name, variant in case.variants.items():
        memory = {"decoder": "sliced", **case.memory, **variant}
        # Without recomputation a micro-batch is at most half a group of SD3.5; with it, a whole group fits.
        micro_batch = case.images if memory.get("gradient_checkpointing") else case.micro_batch
        changed = {
            "rewards": [{"name": "none"}],
            "model": {"precision": "bf16", "height": case.size, "width": case.size},
            "memory": memory,
            "timesteps": {"per_iteration": 1, "optimizer_step": "each"},
            "batch": {"groups": 1, "group_size": case.images, "micro_batch": micro_batch},
        }
        found[name] = resolve([ENTRIES[case.model].settings, changed])
    return found


def _row(entry: ModelEntry, config: RunConfig, networks: Networks) -> Row:
    """What the stages need, or why a setting is refused."""
    device, precision = ALONE.device(config.model.device), PRECISIONS[config.model.precision]
    try:
        if config.memory.attention != "auto":
            check_attention(config.memory.attention, device, precision, FAMILIES[entry.family])
    except Tdmr1Error as error:
        return {"refused": error.message}
    architecture, micro_batch = read_architecture(entry), config.batch.micro_batch
    assert isinstance(micro_batch, int)
    update = planned_update(entry, architecture, config, micro_batch)
    stages = measure(build(entry, architecture, config, networks.get(config)))
    seconds = sum(1 / stage.images_per_second for stage in stages.values())
    operations = passes_an_image(config, entry, micro_batch) * update.operations
    return {
        "model": entry.name,
        "size": entry.height,
        "images": config.batch.group_size,
        "micro_batch": micro_batch,
        "stages": {name: asdict(cost) for name, cost in stages.items()},
        "images_per_second": 1 / seconds,
        "tflops": operations / seconds / 1e12,
        "peak_bytes": max(stage.peak_bytes for stage in stages.values()),
        "estimated_bytes": update.bytes,
        "measured_bytes": stages["generator"].growth_bytes,
        "warm_up_seconds": sum(stage.warm_up_seconds for stage in stages.values()),
    }
