"""What a training needs from this machine, as findings of `tdmr1 doctor`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tdmr1_cli.run_summary import GB, verdict_of
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from tdmr1_core.preflight.resolved import ResolvedRun

Verdict = Literal["ok", "warn", "fail"]
KINDS = {
    "dependency-missing": "package",
    "hub-unavailable": "weights",
    "token-invalid": "environment variable",
    "device-unavailable": "device",
    "attention-unavailable": "device",
    "reward-environment": "interpreter",
    "not-writable": "folder",
}
"""What an error is about, by its code; other codes stand for themselves."""


@dataclass(frozen=True)
class Finding:
    """The result of one check. `remedy` is the command or the step that corrects it; None if nothing is to be done."""

    verdict: Verdict
    what: str
    detail: str
    remedy: str | None = None


def findings_of_run(resolved: ResolvedRun, announce: Callable[[str], None]) -> Iterator[Finding]:
    """What a training of these settings needs: packages, weights, variables, disk space and memory.

    `announce` gets a line of text before work that takes seconds.
    """
    from tdmr1_core.preflight.machine import machine_errors

    names = dict.fromkeys(each.config.name for each in (*resolved.rewards, *resolved.evaluation_rewards))
    yield Finding("ok", "training", f"{resolved.entry.name} with {', '.join(names) or 'no reward'}")
    errors = {(error.message, error.hint): error for error in machine_errors(resolved)}
    for error in errors.values():
        yield _of_error(error)
    if not errors:
        yield Finding("ok", "rewards", "their packages, weights and environment variables are here")
    yield from _weights(resolved)
    yield from _memory(resolved, announce)


def _of_error(error: Tdmr1Error) -> Finding:
    later = error.code == "hub-unavailable" and not _is_offline()
    detail = f"{error.message}; it is downloaded when it is needed" if later else error.message
    return Finding("warn" if later else "fail", KINDS.get(error.code, error.code), detail, error.hint)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _weights(resolved: ResolvedRun) -> Iterator[Finding]:
    """The weights of the model that are not in the cache, and the disk space for them."""
    from huggingface_hub import constants, get_token

    from tdmr1_core.preflight.weights import missing_weights

    entry = resolved.entry
    missing = list(missing_weights(entry, training=resolved.config.kind == "train"))
    for each in missing:
        what = f"{each.source} ({each.role}) is not completely in the local cache"
        if each.gated and get_token() is None:
            page = f"accept the license at https://huggingface.co/{each.source}"
            yield Finding("fail", "weights", f"{what}, and is gated", f"{page}, then `hf auth login`, {each.command}")
        elif _is_offline():
            yield Finding(
                "fail", "weights", f"{what}, and HF_HUB_OFFLINE is set", f"unset HF_HUB_OFFLINE; {each.command}"
            )
        else:
            yield Finding("warn", "weights", f"{what}; a training downloads it", each.command)
    if not missing:
        yield Finding("ok", "weights", "those of the model are here")
    elif entry.download_gb:
        folder, free = _free_space(Path(constants.HF_HUB_CACHE))
        fits = free >= entry.download_gb * GB
        detail = f"{free / GB:.3g} GB free in {folder}; the download is about {entry.download_gb:g} GB"
        remedy = None if fits else "free space, or set HF_HOME to a folder on a larger disk"
        yield Finding("ok" if fits else "fail", "disk", detail, remedy)


def _free_space(folder: Path) -> tuple[Path, int]:
    """The nearest folder that exists, and its free bytes."""
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
    return existing, shutil.disk_usage(existing).free


def _memory(resolved: ResolvedRun, announce: Callable[[str], None]) -> Iterator[Finding]:
    """Whether a training fits into the GPU, or into the memory of the CPU; and the disk space of its checkpoints."""
    from tdmr1_core.distributed import ALONE
    from tdmr1_core.planning.choices import choose
    from tdmr1_core.planning.estimate import Planner
    from tdmr1_core.planning.free_memory import free_memory

    config, entry = resolved.config, resolved.entry
    try:
        device = ALONE.device(config.model.device)
        planner = Planner(entry, announce=announce)
        room = free_memory(device)
        if room is not None:
            choices = choose(config, room, planner.plan)
            planned, fits = choices.planned, choices.fits
            detail = verdict_of(choices, f"{room / GB:.3g} GB free on the GPU")
            remedy = None if fits else "tdmr1 plan with other settings, or a larger GPU"
        else:
            single = config.batch.model_copy(update={"micro_batch": 1})
            planned = planner.plan(config.model_copy(update={"batch": single}))
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            fits = planned.peak <= total
            detail = (
                f"no GPU; a micro-batch of one image needs {planned.peak / GB:.3g} of {total / GB:.3g} GB of the CPU"
            )
            remedy = None if fits else "use a machine with a GPU; `tdmr1 plan --gpu NAME` shows which one fits"
    except Tdmr1Error as error:
        if error.code == "device-unavailable":
            return  # reported already
        yield Finding("warn", "memory", f"cannot be estimated: {error.message}", error.hint)
        return
    slow = room is None and entry.weights_gb >= 1
    yield Finding("fail" if not fits else "warn" if slow else "ok", "memory", detail, remedy)
    size = (planned.parts["LoRAs"] + planned.parts["optimisers"]) * (config.saving.keep + 1)
    folder, free = _free_space(Path.cwd())
    enough = free >= size
    detail = f"{free / GB:.3g} GB free in {folder}; checkpoints need about {size / GB:.2g} GB"
    yield Finding("ok" if enough else "fail", "disk", detail, None if enough else "give the run an --output elsewhere")
