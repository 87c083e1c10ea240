"""Writes plugins into a folder as if they were installed: a module and the metadata that importlib reads."""

from __future__ import annotations

import textwrap
from pathlib import Path

REGISTERS = """
from tdmr1_rewards import RewardSpec, hookimpl

@hookimpl
def tdmr1_register_rewards(register):
    register(RewardSpec(
        name={name!r}, summary="a test", factory={factory!r}, options={options!r}, default_prompts="count",
    ))
"""


def write_plugin(folder: Path, distribution: str, module: str, source: str, entry_point: str | None = None) -> None:
    """Write a distribution, version 1.0, with one module. The default of `entry_point` is the module's name."""
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tdmr1]\n{entry_point or module} = {module}\n")


def registering(name: str, factory: str = "no_such_module:Thing", options: str | None = None) -> str:
    """The source of a module that registers one reward."""
    return REGISTERS.format(name=name, factory=factory, options=options)
