"""Builds wheels and installs them in temporary virtual environments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from support.paths import TESTS

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
SETTINGS = ("batch.groups=2", "batch.group_size=4", "timesteps.per_iteration=1", "evaluation.images=2")
SETTINGS += ("saving.samples_every=0", "saving.tensorboard=false")
SMALL = [part for setting in SETTINGS for part in ("--set", setting)]


def run(*command: str | Path, code: int = 0, **options) -> subprocess.CompletedProcess[str]:
    """Run a command and expect an exit code."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900, **options)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of a package from its source."""
    folder.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def build_distributions(source: Path, folder: Path) -> tuple[Path, Path]:
    """Build the source distribution of a package, and the wheel from it, as a release does."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


class Environment:
    """A new virtual environment that can also import the packages of this one, except editable installs.

    A .pth file adds the site-packages of this environment. Python does not read the .pth files in folders added in
    this way, and an editable install consists of a .pth file.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        (self.site_packages,) = folder.glob("lib/python*/site-packages")
        below = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site_packages / "below.pth").write_text("".join(f"{path}\n" for path in sorted(below)))
        shutil.copy(TESTS / "support" / "lean" / "sitecustomize.py", self.site_packages)
        self._folder = folder

    def install(self, wheel: Path, *options: str) -> None:
        """Install a wheel without access to a package index."""
        run(*PIP, "--python", self.python, "install", "--quiet", "--no-index", *options, wheel)

    def uninstall(self, distribution: str) -> None:
        """Uninstall a distribution."""
        run(*PIP, "--python", self.python, "uninstall", "--quiet", "--yes", distribution)

    def run(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments, outside the source tree."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TDMR1_", "PYTHONPATH"))}
        return run(self.python, *arguments, code=code, env=kept, cwd=self._folder)

    def tdmr1(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the installed console script."""
        return self.run(self.python.with_name("tdmr1"), *arguments, code=code)
