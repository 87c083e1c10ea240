import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).parents[3]
HEAVY = ("torch", "numpy", "diffusers", "transformers", "peft", "PIL", "scipy", "click")
SCRIPT = """
import sys
from tdmr1_cli.main import main
code = main(sys.argv[1:])
print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--version", "rewards list", "models list", "plugins", "config show", "train --preset tinny"],
)
def test_light_commands_import_nothing_heavy(arguments):
    script = SCRIPT.format(heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments.split()], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == (2 if "tinny" in arguments else 0)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
