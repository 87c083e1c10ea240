"""A virtual environment that has its own packages and also sees those of the tests; torch is not installed twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from support.paths import ROOT

from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.calling.process import ProcessHost
from tdmr1_rewards.calling.result_checks import CallFailed
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import load_plugins
from tdmr1_rewards.sources.source import find_reward, reference_for

HERE = Path(__file__).parent


RESOLVE = """
import json, sys
from tdmr1_rewards.builtin.ocr_match import OcrMatchOptions, resolve_engine
print()
print(json.dumps([resolve_engine(OcrMatchOptions(**options)).engine for options in json.loads(sys.argv[1])]))
"""


@dataclass(frozen=True)
class Job:
    """A reward by name with its options, and the images and prompts that it scores; `images` are PNG files."""

    reward: str
    options: dict[str, Any]
    images: Sequence[Path] = ()
    prompts: Sequence[str] = ()


def make_environment(folder: Path) -> Path:
    """Make the environment in `folder` and return its interpreter. torchvision works in it and in its subprocesses."""
    python = layered_environment(folder, HERE / "requirements.txt")
    (site,) = (folder / "lib").glob("python*/site-packages")
    shutil.copy(HERE / "torchvision_without_cuda.py", site)
    (site / "torchvision.pth").write_text("import torchvision_without_cuda\n")
    return python


def layered_environment(folder: Path, requirements: Path) -> Path:
    """Make an environment in `folder` with these packages, above those of the tests; returns its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    run([*pip, "-r", str(requirements)])
    (site,) = (folder / "lib").glob("python*/site-packages")
    below = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(ROOT)])
    (site / "layered.pth").write_text("".join(f"{path}\n" for path in below))
    return python


def score_elsewhere(python: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The result of each job in another interpreter: {"scores", "details"} or {"code", "values", "message", "hint"}."""
    return [_score(python, job) for job in jobs]


def _score(python: Path, job: Job) -> dict[str, Any]:
    images = [Image.open(path).convert("RGB") for path in job.images]
    count = len(images)
    batch = RewardBatch(images, job.prompts, [{}] * count, [0] * count, range(count), RewardContext(None, 0, 0))
    try:
        reference = reference_for(find_reward(load_plugins().rewards, job.reward), job.options, python)
        host = ProcessHost(reference, f"reward {job.reward!r}", "pil", python)
        host.start()
        try:
            host.setup("cpu")
            result = host.call(batch)
        finally:
            host.close()
    except Tdmr1Error as error:
        return error.document()
    except CallFailed as failure:
        return Tdmr1Error(failure.reason, failure.hint, code=failure.code, values=failure.values).document()
    return {"scores": list(result.scores), "details": [dict(each) for each in result.details or ()]}


def engines_elsewhere(python: Path, *options: dict[str, Any]) -> list[str]:
    """The OCR engine that each of these options selects under another interpreter."""
    return list(json.loads(run([str(python), "-c", RESOLVE, json.dumps(options)]).stdout.splitlines()[-1]))


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed. Returns the process with its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, **options)
    assert done.returncode == 0, done.stderr + done.stdout
    return done
