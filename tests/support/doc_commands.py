"""The `tdmr1` commands in the code blocks of README.md and docs/*.md."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from support.paths import ROOT

BLOCK = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SHELL = ("", "sh", "bash", "console")
"""The languages of blocks that hold commands."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class DocCommand:
    """A command of a page."""

    page: str
    """The name of the file, such as usage.md."""
    line: str
    """As it is written, without a comment, variables and line breaks."""

    @property
    def arguments(self) -> list[str]:
        """The words after `tdmr1`."""
        return shlex.split(self.line)[1:]


def doc_commands(pages: list[Path] = PAGES) -> list[DocCommand]:
    """The commands of these pages in their order. A line that occurs twice on a page is listed once."""
    found = [
        DocCommand(page.name, line)
        for page in pages
        for language, block in BLOCK.findall(page.read_text(encoding="utf-8"))
        if language in SHELL
        for line in _commands(block)
    ]
    return list(dict.fromkeys(found))


def _commands(block: str) -> list[str]:
    """The lines of a block that run `tdmr1`."""
    lines = block.replace("\\\n", " ").splitlines()
    matches = [re.match(r"(?:\$ )?(?:[A-Z_0-9]+=\S+ )*(tdmr1 [a-z].*)$", line) for line in lines]
    return [" ".join(_without_comment(match[1]).split()) for match in matches if match]


def _without_comment(line: str) -> str:
    return re.sub(r"\s+# .*$", "", line)


RUN = {
    "models.md": ["tdmr1 plan --model sd3.5-tdm --gpu H100"],
    "quickstart.md": [
        "tdmr1 doctor",
        "tdmr1 report runs/first",
        'tdmr1 sample runs/first --prompt "three red circles" --output images',
        "tdmr1 export runs/first",
        "tdmr1 rewards try warm.py:warm images/grid.png",
        "tdmr1 train --reward warm.py:warm --dry-run",
        "tdmr1 models list",
        "tdmr1 plan --model sd3.5-tdm --gpu 24GB",
        "tdmr1 train --reward ocr_match --model sd3.5-tdm --dry-run",
    ],
    "troubleshooting.md": [
        "tdmr1 rewards check object_count",
        'tdmr1 sample runs/first --prompt "three red circles" --output images/after',
        'tdmr1 sample runs/first --prompt "three red circles" --role start --output images/before',
    ],
    "explain.md": ['tdmr1 explain runs/first --prompt "three red circles"'],
    "human.md": ["tdmr1 sample runs/first --prompts count --output images"],
    "errors.md": ["tdmr1 rewards info object_cuont"],
}
"""Commands that `make test` runs as they are written, in order, in a folder with the run runs/first and warm.py."""
RUN_LONG = {
    "quickstart.md": ["tdmr1 evaluate runs/first --images 48"],
}
"""Commands that `make test-long` runs in the same folder."""
DRY_RUN = {
    "README.md": ["tdmr1 train --reward ocr_match --model sd3.5-tdm"],
    "human.md": ["tdmr1 train --reward human"],
    "quickstart.md": ["tdmr1 train --iterations 10 --output runs/first"],
    "models.md": [
        "tdmr1 train --reward ocr_match --model sd3.5-tdm",
        "tdmr1 train --reward geneval --model z-image-turbo",
    ],
}
"""Trainings of minutes or of published weights: `make test` runs them with --dry-run."""
DRY_RUN_LONG = {
    "tiny_world.md": [
        "tdmr1 train --model tiny-words-tdm --reward ocr_match",
        "tdmr1 train --model tiny-pairs-tdm --reward geneval",
    ],
    "troubleshooting.md": ["tdmr1 train --set advantages.permute=true --output runs/control"],
}
"""The same for `make test-long`."""
PARSED = {
    "compare.md": [
        "tdmr1 compare runs/real runs/permuted",
        "tdmr1 compare runs/real runs/permuted --json",
        "tdmr1 compare runs/real runs/permuted --csv table.csv --plot curves.svg --axis images",
    ],
    "reports.md": [
        "tdmr1 report runs/my-run",
        "tdmr1 report runs/a runs/b --output ab.html",
        "tdmr1 report runs/my-run --watch",
    ],
    "tracking.md": [
        "tdmr1 train --set 'tracking=[trackio]'",
    ],
    "README.md": [
        "tdmr1 train --reward red_share",
        "tdmr1 train --reward my_reward.py:score",
        "tdmr1 plan --model sd3.5-tdm --gpu 24GB",
    ],
    "human.md": [
        'tdmr1 label images --question "Is the text in the image readable?"',
        "tdmr1 label images",
        "tdmr1 train --reward human --model my-model --set rewards.0.options.judges=3",
        "tdmr1 train --reward human --set rewards.0.options.mode=model --set rewards.0.options.answers='[images]'",
    ],
    "models.md": [
        "tdmr1 train --reward ocr_match --model sd3.5-tdm --model-path DIR",
        "tdmr1 train --reward geneval --model z-image-turbo --set model.teacher=Tongyi-MAI/Z-Image",
        "tdmr1 train --reward ocr_match --model sd3.5-large-tdm --lora mine.safetensors",
        "tdmr1 export RUN --push OWNER/NAME --private --dry-run",
        "tdmr1 export RUN --push OWNER/NAME --private",
    ],
    "security.md": ["tdmr1 train --resume RUN --set rewards.0.options.api_key=env:NAME"],
    "troubleshooting.md": ["tdmr1 probe --reward object_count", "tdmr1 plan --model sd3.5-tdm --gpu 24GB"],
    "usage.md": [
        "tdmr1 doctor --model sd3.5-tdm --reward ocr_match --reward pickscore",
        "tdmr1 train --reward geneval --model sd3.5-tdm --prompts hf:OWNER/DATASET:caption@train[:5000] "
        "--set prompts.evaluate=hf:OWNER/DATASET:caption@test",
        "tdmr1 train --reward geneval --model sd3.5-tdm --prompts hf:OWNER/DATASET:caption",
        'tdmr1 sample RUN --prompt "two red circles" --output DIR --set model.path=/new/base',
        "tdmr1 train --resume RUN --set model.path=/new/base --set prompts.train=/new/train.txt "
        "--set rewards.0.source=/new/warm.py:warm --set rewards.0.python=/new/env/bin/python",
    ],
}
"""Commands without a dry run here: they need a file, a run or a model of the reader, or another page has them too.

Their arguments are parsed, as those of all commands are.
"""
ELSEWHERE = {
    "adding_a_model.md": "integration/test_model_package.py",
    "reward_protocol.md": "integration/test_reward_protocol.py",
    "tutorial_model.md": "integration/test_tutorials.py",
    "tutorial_reward.md": "integration/test_tutorials.py",
    "writing_rewards.md": "integration/test_writing_rewards.py",
}
"""Pages whose commands a test of their own runs, all of them."""
