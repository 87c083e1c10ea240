"""`tdmr1 doctor`: is this machine ready?"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tdmr1_cli.options import DEFAULT_MODEL, JsonOption
from tdmr1_cli.output import emit_json, table

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    verdict: Verdict
    what: str
    detail: str


def command(json: JsonOption = False) -> int:
    """Check versions, threads, device, the embedded model and plugins. Exit code 1 if something fails."""
    findings = [finding for check in CHECKS for finding in _guarded(check)]
    if json:
        emit_json([asdict(finding) for finding in findings])
    else:
        table(["", "what", "found"], [[finding.verdict, finding.what, finding.detail] for finding in findings])
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check's findings; one that raises is a finding itself."""
    try:
        yield from check()
    except Exception as error:
        yield Finding("fail", check.__name__.strip("_"), f"{type(error).__name__}: {' '.join(str(error).split())}")


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
            yield Finding("fail", "torchvision", f"does not fit torch ({reason}); install a matching one or none")


def _threads() -> Iterator[Finding]:
    import torch

    processors, threads = os.cpu_count() or 1, torch.get_num_threads()
    settings = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"))
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
    import torch

    from tdmr1_core.models.loading import fetch_model, load_backbone
    from tdmr1_core.models.registry import ModelRegistry

    what, entry = f"model {DEFAULT_MODEL}", ModelRegistry().get(DEFAULT_MODEL)
    load_backbone(fetch_model(entry, training=True), torch.device("cpu"), torch.float32)
    yield Finding("ok", what, "loads")


def _plugins() -> Iterator[Finding]:
    from tdmr1_cli.commands.plugins import find_plugins

    plugins = find_plugins()
    for record in plugins.records:
        status = "left out" if record.disabled else record.error or "fine"
        detail = f"{status} (from {record.provenance})"
        yield Finding("warn" if record.error else "ok", f"plugin {record.provenance.plugin}", detail)
    for name in plugins.unmatched:
        yield Finding("warn", "plugins", f"TDMR1_DISABLE_PLUGINS names {name!r}, which is no plugin here")


def _working_folder() -> Iterator[Finding]:
    folder = Path.cwd()
    writable = os.access(folder, os.W_OK)
    detail = str(folder) if writable else f"{folder} can't be written: runs need --output elsewhere"
    yield Finding("ok" if writable else "warn", "working folder", detail)


CHECKS = (_packages, _threads, _device, _model, _plugins, _working_folder)
