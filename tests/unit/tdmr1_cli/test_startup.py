import subprocess
import sys

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.unit

HEAVY = ("torch", "numpy", "diffusers", "transformers", "peft", "PIL", "scipy", "click")
LISTING = (*HEAVY, "pydantic", "yaml", "easyocr", "rapidocr", "open_clip", "fastapi", "requests")
"""Packages that the list of rewards must not import."""
SCRIPT = """
import sys
from tdmr1_cli.main import main
code = main(sys.argv[1:])
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""
LISTING_SCRIPT = """
import sys
from tdmr1_cli.commands.rewards.listing import command
command({arguments})
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "rewards list",
        "models list",
        "models info z-image-turbo",
        "plugins",
        "config show",
        "train --preset tinny",
    ],
)
def test_light_commands_import_nothing_heavy(arguments):
    script = SCRIPT.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script, *arguments.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (2 if "tinny" in arguments else 0)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("arguments", ["", "json=True"])
def test_rewards_are_listed_without_what_they_need(arguments):
    """Calls the function directly, because typer imports pydantic for its own parsing."""
    script = LISTING_SCRIPT.format(heavy=LISTING, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "object_count" in done.stdout
    assert done.stderr.splitlines() == ["[]"]
