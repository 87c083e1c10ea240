"""`tdmr1 doctor`: checks that this machine is ready, also for a model and rewards."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tdmr1_cli.needs import Finding, Verdict, findings_of_run
from tdmr1_cli.options import (
    ConfigArgument,
    JsonOption,
    LoraOption,
    ModelOption,
    ModelPathOption,
    PresetOption,
    PromptsOption,
    RewardOption,
    SetOption,
)
from tdmr1_cli.output import data, emit_json, message, table
from tdmr1_core.distributed import WAITING
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.preflight.layers import Flags, resolve_settings


def command(
    config: ConfigArgument = None,
    model: ModelOption = None,
    reward: RewardOption = None,
    preset: PresetOption = None,
    prompts: PromptsOption = None,
    sets: SetOption = None,
    model_path: ModelPathOption = None,
    lora: LoraOption = None,
    json: JsonOption = False,
) -> int:
    """Check versions, threads, device, plugins and the embedded model, or what a training needs from this machine.

    With a model or rewards, it names packages, weights, environment variables, memory and disk space that this machine
    lacks, each with the command that provides it. Nothing is downloaded, and no weights are loaded. The exit code is 1
    if a check fails. Weights that a training can download are only a warning.
    """
    flags = Flags(config, model, reward or (), preset, prompts, None, None, sets or (), model_path, lora)
    checks: Sequence[Callable[[], Iterator[Finding]]] = (*CHECKS, _model)
    if flags != Flags():
        from tdmr1_core.plugins import discover

        resolved = resolve_settings(flags, None, discover())

        def training() -> Iterator[Finding]:
            return findings_of_run(resolved, message)

        checks = (*CHECKS, training)
    findings = [finding for check in checks for finding in _guarded(check)]
    if json:
        emit_json([asdict(finding) for finding in findings])
    else:
        table(["", "what", "found"], [[finding.verdict, finding.what, finding.detail] for finding in findings])
        remedies = dict.fromkeys(finding.remedy for finding in findings if finding.remedy)
        if remedies:
            data("to do:", *(f"  {remedy}" for remedy in remedies))
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; an exception is a finding of its own."""
    what = check.__name__.strip("_")
    try:
        yield from check()
    except Tdmr1Error as error:
        yield Finding("fail", what, error.message, error.hint)
    except Exception as error:
        yield Finding("fail", what, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _packages() -> Iterator[Finding]:
    from tdmr1_core.versions import versions

    found = versions()
    yield Finding("ok" if sys.version_info >= (3, 11) else "fail", "python", found.pop("python"))
    for name, version in found.items():
        absent: Verdict = "warn" if name == "tdmr1" else "fail"
        yield Finding(absent if version == "absent" else "ok", name, version)
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
            yield Finding("ok", "torchvision", "fits torch")
        except Exception as error:
            reason = " ".join(str(error).split())
            yield Finding(
                "fail", "torchvision", f"does not fit torch ({reason}); install the matching version, or uninstall it"
            )


def _threads() -> Iterator[Finding]:
    import torch

    processors, threads = os.cpu_count() or 1, torch.get_num_threads()
    settings = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in ("OMP_NUM_THREADS", *WAITING))
    yield Finding(
        "ok" if threads <= processors else "warn", "threads", f"{threads} of {processors} processors, {settings}"
    )


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        yield Finding("ok", "device", torch.cuda.get_device_name())
    else:
        yield Finding("ok", "device", "cpu (no GPU found)")


def _model() -> Iterator[Finding]:
    """Resolves and loads the embedded model as a training would."""
    import torch

    from tdmr1_core.models.loading import fetch_model, load_backbones
    from tdmr1_core.plugins import discover

    resolved = resolve_settings(Flags(), "train", discover())
    load_backbones(fetch_model(resolved.entry, training=True), torch.device("cpu"), torch.float32)
    yield Finding("ok", f"model {resolved.entry.name}", "loads")


def _plugins() -> Iterator[Finding]:
    from tdmr1_cli.commands.plugins import find_plugins

    plugins = find_plugins()
    for record in plugins.records:
        status = "disabled" if record.disabled else record.error or "ok"
        detail = f"{status} (from {record.provenance})"
        yield Finding("warn" if record.error else "ok", f"plugin {record.provenance.plugin}", detail)
    for name in plugins.unmatched:
        yield Finding("warn", "plugins", f"TDMR1_DISABLE_PLUGINS names {name!r}, but no such plugin is installed")


def _working_folder() -> Iterator[Finding]:
    folder = Path.cwd()
    writable = os.access(folder, os.W_OK)
    detail = str(folder) if writable else f"{folder} cannot be written: give runs an --output elsewhere"
    yield Finding("ok" if writable else "warn", "working folder", detail)


CHECKS = (_packages, _threads, _device, _plugins, _working_folder)
