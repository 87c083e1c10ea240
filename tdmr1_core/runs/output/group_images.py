"""The best and the worst image of one group of an iteration, saved for the report of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tdmr1_core.algorithm.advantages import group_spreads
from tdmr1_core.durable_files import replace_durable, translate_write_errors
from tdmr1_core.records import Scores, Trajectory
from tdmr1_core.runs.output.image_grids import png
from tdmr1_core.runs.output.previews import SAMPLES
from tdmr1_rewards.hookspecs import hookimpl
from tdmr1_rewards.texts.redaction import redact_texts

BEST, WORST = "best", "worst"


@dataclass(frozen=True, eq=False)
class GroupImages:
    """A plugin of the engine: of each iteration that is `wanted`, it saves two images of the group that differs most.

    With several processes, it sees the groups of the first one only.

    `group-000010.json` in `samples/` has the prompt, the combined rewards of the whole group, and the scores of both
    images; `group-000010-best.png` and `group-000010-worst.png` are the images. `wanted` gets the number of the
    iteration, from 1.
    """

    folder: Path
    wanted: Callable[[int], bool]

    @hookimpl
    def tdmr1_after_scoring(self, trajectory: Trajectory, scores: Scores) -> None:
        """Save the images, before anything is updated. An iteration that is repeated saves the same images again."""
        step = trajectory.groups.iteration + 1
        if trajectory.images is None or not self.wanted(step):
            return
        size = trajectory.groups.group_size
        spreads = group_spreads(scores.total, scores.valid, size).nan_to_num(0.0, 0.0, 0.0).tolist()
        group = max(range(len(spreads)), key=spreads.__getitem__)
        if not spreads[group]:
            return  # all images of each group have the same reward
        images = [image for image in range(group * size, (group + 1) * size) if scores.valid[image]]
        ordered = sorted(images, key=lambda image: scores.total[image].item())
        chosen = {BEST: ordered[-1], WORST: ordered[0]}
        document = {
            "step": step,
            "prompt": trajectory.groups.prompts[group].text,
            "rewards": [scores.total[image].item() for image in images],
            "scores": {
                word: {name: values[image] for name, values in scores.per_reward.items()}
                for word, image in chosen.items()
            },
        }
        name = f"group-{step:06d}"
        with translate_write_errors(self.folder):
            for word, image in chosen.items():
                content = png(Image.fromarray(trajectory.images[image]))
                replace_durable(self.folder / SAMPLES / f"{name}-{word}.png", content)
            replace_durable(self.folder / SAMPLES / f"{name}.json", json.dumps(redact_texts(document)).encode())
