"""The conformance checks of a family: whether our Backbone does what the pipeline of diffusers does.

A check returns what it found, as one sentence part. It raises Mismatch if the family is wrong, and NotApplicable if the
pipeline cannot be checked in this way.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tdmr1_core.algorithm.flow import predict_clean
from tdmr1_core.conformance.card_parameters import CARD_PARAMETERS
from tdmr1_core.conformance.subject import PROMPTS, Mismatch, NotApplicable, Subject, largest_difference
from tdmr1_core.conformance.trained import check_training
from tdmr1_core.models.backbone import Backbone
from tdmr1_core.models.lora.files import read_lora
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork, build_network
from tdmr1_core.models.pipeline import PipelineBackbone
from tdmr1_core.models.pipeline_files import read_config
from tdmr1_core.models.roles import GENERATOR, Roles
from tdmr1_core.planning.published_configs import PUBLISHED

STEPS = 4
GUIDANCE = 3.0
RANK, ALPHA = 4, 8.0
PIXELS = 1
"""The largest difference of a pixel (of 255) that rounding explains."""
DIFFUSERS = "diffusers"
LORA_CLOSE = 1e-3
"""The largest difference from the change of a LoRA, relative to the change."""
CLOSE = 1e-5
"""The largest relative difference of tensors that rounding explains."""
PER_CENT = 0.01


@dataclass(frozen=True)
class Result:
    """The result of a check. `passed` is None if it does not apply."""

    check: str
    passed: bool | None
    found: str


def run_checks(subject: Subject, *, training: bool = True) -> Iterator[Result]:
    """All checks, one after the other. Without `training`, no LoRA is trained."""
    for name, check in CHECKS.items():
        if check is check_training and not training:
            yield Result(name, None, "not trained")
            continue
        try:
            yield Result(name, True, check(subject))
        except NotApplicable as reason:
            yield Result(name, None, str(reason))
        except Mismatch as mismatch:
            yield Result(name, False, str(mismatch))


def check_pixels(subject: Subject) -> str:
    """K-step sampling gives the images of the pipeline's own call, with and without guidance."""
    found = []
    for name, guidance in (("without guidance", 1.0), ("with guidance", GUIDANCE)):
        for size in subject.sizes:
            ours = subject.ours(size, STEPS, guidance)
            difference = largest_difference(ours, subject.theirs(size, STEPS, guidance))
            if difference > PIXELS:
                raise Mismatch(f"a pixel differs by {difference} of 255 {name} at {size[1]}×{size[0]}")
            if ours.std() < PIXELS:
                raise Mismatch(f"the images are of one color, so nothing was compared ({name})")
            found.append(difference)
    return f"largest difference {max(found)} of 255, with and without guidance"


def check_levels(subject: Subject) -> str:
    """Without settings, our noise levels are those of the pipeline, for its steps and for 4, at two sizes."""
    if subject.entry.shift is not None and not subject.backbone.has_static_levels:
        raise NotApplicable("the model entry has a shift of its own")
    for size in subject.sizes:
        for steps in sorted({STEPS, subject.entry.steps, 8}):
            pipeline = subject.fresh()
            pipeline(
                prompt=PROMPTS[0],
                num_inference_steps=steps,
                height=size[0],
                width=size[1],
                output_type="latent",
                **subject.family.call_arguments,
                **(
                    {"sigmas": _even(steps)}
                    if subject.backbone.has_static_levels and subject.family.takes_sigmas
                    else {}
                ),
            )
            ours, theirs = (
                subject.backbone.schedule(steps, subject.backbone.noise_schedule(size, steps)),
                pipeline.scheduler.sigmas,
            )
            if not torch.allclose(ours, theirs.to(ours), rtol=0, atol=CLOSE):
                raise Mismatch(f"{steps} steps at {size[1]}×{size[0]}: {ours.tolist()} instead of {theirs.tolist()}")
    return ", ".join(f"{level:.3f}" for level in subject.sigmas(subject.sizes[0], STEPS).tolist())


def _even(steps: int) -> list[float]:
    """1 - k / K: a static scheduler that only gets a number of steps applies its shift twice."""
    return [1 - k / steps for k in range(steps)]


def check_targets(subject: Subject) -> str:
    """Every LoRA target is bound, and the kinds of bound layers are those of the published network."""
    targets = subject.entry.targets
    counts = _bound(subject.family.find_class(subject.family.transformer), _denoiser(subject), targets)
    unbound = [
        target for target in subject.family.targets if not _number(target) and not any(_ends(k, target) for k in counts)
    ]
    if unbound:
        raise Mismatch(f"no layer is bound by {', '.join(unbound)}")
    if subject.published is None:
        return f"{sum(counts.values())} layers of {len(counts)} kinds"
    config = PUBLISHED[subject.published]["transformer/config.json"]
    real = _bound(subject.family.find_class(subject.family.transformer), config, targets)
    if subject.is_tiny and (missing := _kinds(real) ^ _kinds(counts)):
        raise Mismatch(f"the published network differs in {', '.join(sorted(missing))}")
    return f"{sum(real.values())} layers of {len(_kinds(real))} kinds in {subject.published}"


def _denoiser(subject: Subject) -> Mapping[str, Any]:
    return read_config(str(subject.folder), "transformer/config.json")


def _bound(kind: type, config: Mapping[str, Any], targets: tuple[str, ...]) -> Counter[str]:
    """How many layers of a network are bound, by name with a star for the number of the block."""
    network = build_network(kind, config, "meta")
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return Counter(re.sub(r"\.\d+\.", ".*.", name, count=1) for name in names if any(_ends(name, t) for t in targets))


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _number(target: str) -> bool:
    return re.search(r"\.\d+\.", target) is not None


def _kinds(counts: Mapping[str, int]) -> set[str]:
    return set(counts)


def check_layouts(subject: Subject) -> str:
    """A LoRA in each published layout changes the velocity as it does where diffusers loads it."""
    network = MetaNetwork(subject.family, _denoiser(subject))
    shape = LoraShape(RANK, ALPHA, subject.entry.targets)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(size, generator=generator) / 4 for name, size in network.lora(shape).items()}
    roles = Roles(_backbone(subject, subject.load()), shape, (GENERATOR,), (), seed=0)
    with TemporaryDirectory() as made:
        folder = Path(made)
        paths = _write_layouts(subject, weights, folder)
        pipeline = subject.load()
        pipeline.load_lora_weights(folder, weight_name=paths[DIFFUSERS].name)
        before, expected = _velocity(subject, subject.backbone), _velocity(subject, _backbone(subject, pipeline))
        change = float((expected - before).abs().max())
        if change == 0:
            raise Mismatch("a LoRA with random weights changes nothing in diffusers")
        for layout, path in paths.items():
            roles.load(GENERATOR, read_lora(path, network, shape).weights, str(path))
            with roles.acting(GENERATOR) as acting:
                difference = float((_velocity(subject, acting) - expected).abs().max())
            if difference > LORA_CLOSE * change:
                raise Mismatch(
                    f"a LoRA in the layout of {layout} differs by {difference:.3g} from the change of {change:.3g} "
                    "that it makes in diffusers"
                )
    return ", ".join(paths)


def _backbone(subject: Subject, pipeline: Any) -> PipelineBackbone:
    length = subject.entry.max_sequence_length
    return type(subject.backbone)(pipeline, device=subject.device, precision=torch.float32, max_sequence_length=length)


@torch.no_grad()
def _velocity(subject: Subject, backbone: Backbone) -> Tensor:
    """The velocity of all prompts at sigma = 0.7."""
    noise = subject.noise(subject.sizes[0])
    sigma = torch.full((len(noise),), 0.7, dtype=noise.dtype, device=noise.device)
    return backbone.velocity(noise, sigma, subject.backbone.encode(list(PROMPTS)))


def _write_layouts(subject: Subject, weights: Mapping[str, Tensor], folder: Path) -> dict[str, Path]:
    """Write the same LoRA in the layouts that are published for the family. Returns the files by layout."""
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in weights})
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": modules}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    files: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {
        DIFFUSERS: ({f"transformer.{name}": weight for name, weight in weights.items()}, header)
    }
    prefix = subject.family.comfy_prefix
    if prefix is not None:
        parts = {".lora_A.": ".lora_down.", ".lora_B.": ".lora_up."}
        kohya = {f"{prefix}{_replaced(name, parts)}": weight for name, weight in weights.items()}
        kohya |= {f"{prefix}{module}.alpha": torch.tensor(ALPHA) for module in modules}
        files["ComfyUI"] = (kohya, {})
    paths = {}
    for layout, (tensors, metadata) in files.items():
        paths[layout] = folder / f"{layout}.safetensors"
        save_file(tensors, paths[layout], metadata)
    return paths


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    for former, new in parts.items():
        name = name.replace(former, new)
    return name


def check_velocity(subject: Subject) -> str:
    """Sign and time of the velocity: x_sigma - sigma v is where one step of the pipeline's scheduler to 0 leads."""
    size, backbone = subject.sizes[1], subject.backbone
    worst = 0.0
    for level in (1.0, 0.6, 0.1):
        noise = subject.noise(size)
        sigma = torch.full((len(noise),), level, dtype=noise.dtype, device=noise.device)
        with torch.no_grad():
            texts = backbone.encode(list(PROMPTS))
            clean = predict_clean(noise, backbone.velocity(noise, sigma, texts), sigma)
            expected = _one_step(subject, size, level)
        ours = backbone.decode(clean)
        difference = largest_difference(ours, expected)
        if difference > PIXELS:
            raise Mismatch(f"a pixel after one step from sigma {level:g} differs by {difference} of 255")
        worst = max(worst, difference)
    return f"one step from sigma 1, 0.6 and 0.1: largest difference {worst:g} of 255"


def _one_step(subject: Subject, size: tuple[int, int], level: float) -> Any:
    """The images of the pipeline after one step from a noise level to 0."""
    pipeline, backbone = subject.fresh(), subject.backbone
    call = backbone.sampling_call(
        torch.tensor([level, 0.0], dtype=torch.float64), size, subject.entry.max_sequence_length
    )
    call.prepare(pipeline)
    if not subject.family.takes_sigmas:
        _start_at(pipeline.scheduler, level)
    latents = backbone.pipeline_latents(subject.noise(size))
    return pipeline(prompt=list(PROMPTS), latents=latents, **call.arguments, output_type="np").images


def _start_at(scheduler: Any, level: float) -> None:
    """Make a scheduler begin at a noise level, for a pipeline that does not take levels."""
    original = scheduler.set_timesteps
    scheduler.set_timesteps = lambda *, sigmas, device: original(sigmas=[level], device=device)


def check_batches(subject: Subject) -> str:
    """Prompts of different lengths do not change each other in a batch: padding has no effect."""
    backbone, noise = subject.backbone, subject.noise(subject.sizes[0])
    sigma = torch.tensor([0.9, 0.4], dtype=noise.dtype, device=noise.device)
    with torch.no_grad():
        alone = [backbone.encode([prompt]) for prompt in PROMPTS]
        together = backbone.velocity(noise, sigma, type(alone[0]).cat(alone))
        rows = [backbone.velocity(noise[i : i + 1], sigma[i : i + 1], texts) for i, texts in enumerate(alone)]
    difference = float((together - torch.cat(rows)).abs().max() / together.abs().max())
    if difference > CLOSE:
        raise Mismatch(f"the velocity of a prompt differs by {difference:.2g} beside a longer one")
    return f"relative difference {difference:.1g}"


def check_parameters(subject: Subject) -> str:
    """The published config of the denoiser has the parameters that the model card states."""
    known = [
        name
        for name in CARD_PARAMETERS
        if name in PUBLISHED and PUBLISHED[name]["model_index.json"]["_class_name"] == subject.family.pipeline
    ]
    if subject.entry.base in known:
        known = [subject.entry.base]
    if not known:
        raise NotApplicable("no published config with a stated number of parameters is built in")
    found = []
    for name in known:
        network = build_network(
            subject.family.find_class(subject.family.transformer), PUBLISHED[name]["transformer/config.json"], "meta"
        )
        count = sum(weight.numel() for weight in network.parameters())
        stated = CARD_PARAMETERS[name]
        if abs(count / stated - 1) > PER_CENT:
            raise Mismatch(f"{name} has {count / 1e9:.2f}·10⁹ parameters; the model card states {stated / 1e9:.2f}·10⁹")
        found.append(f"{name} {count / 1e9:.2f}·10⁹")
    return ", ".join(found)


CHECKS: dict[str, Callable[[Subject], str]] = {
    "images": check_pixels,
    "noise levels": check_levels,
    "LoRA targets": check_targets,
    "LoRA files": check_layouts,
    "velocity": check_velocity,
    "training": check_training,
    "batches": check_batches,
    "parameters": check_parameters,
}
"""The checks, by name, in the order of the table."""
