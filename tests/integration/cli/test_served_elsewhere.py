"""A reward that `tdmr1 rewards serve --python` serves: its scores, and an exception in its code, at the client."""

import re
import subprocess

import pytest
from PIL import Image
from support.command_line import start_tdmr1
from support.environments import image_environment

pytestmark = [pytest.mark.integration, pytest.mark.long]

REWARD = """import sys


def shade(image, prompt, scale=1.0):
    if prompt == "fail":
        return image.mean()
    return scale * (image.getpixel((0, 0))[0] + (0.5 if "elsewhere" in sys.prefix else 0))
"""


def test_a_client_gets_scores_and_the_file_and_line_of_the_server(tdmr1, tmp_path):
    python = image_environment(tmp_path)
    python = (tmp_path / "environment").rename(tmp_path / "elsewhere") / "bin" / "python"
    reward = tmp_path / "shade.py"
    reward.write_text(REWARD)
    Image.new("RGB", (8, 8), (7, 7, 7)).save(tmp_path / "dark.png")
    token = {"TDMR1_REWARD_TOKEN": "a-token-for-tests"}
    serve = ["rewards", "serve", f"{reward}:shade", "--python", python, "--port", 0, "--device", "cpu"]
    server = start_tdmr1(*serve, "--option", "scale=2", stdout=subprocess.PIPE, **token)
    try:
        source = "remote:" + re.search(r"http://\S+", server.stdout.readline())[0]
        attempt = ["rewards", "try", source, "dark.png", "--prompt"]
        assert re.search(r"dark\.png +15 ", tdmr1(*attempt, "dark", cwd=tmp_path, **token).stdout)
        printed = tdmr1(*attempt, "fail", cwd=tmp_path, code=2, **token).stderr
    finally:
        server.kill()
        server.communicate()
    assert f"has no attribute 'mean' ({reward}:6, in shade) [reward-failed]" in printed
    assert "hint: on the server: the images were given as a PIL image; " in printed
    assert "on_failure" not in printed
