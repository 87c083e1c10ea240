"""What is kept of a call that failed, so that it can be looked at and tried again."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tdmr1_rewards.api import RewardBatch
from tdmr1_rewards.calling.wire import plain
from tdmr1_rewards.errors import Tdmr1Error

FOLDER, BATCH_FILE = "failures", "batch.json"


class RewardWarning(UserWarning):
    """A reward failed, and the run goes on without its images."""


class RewardFailed(Tdmr1Error):
    """A reward failed for good: what the run has learnt until then is whole."""


@dataclass(frozen=True, eq=False)
class Failure:
    """A failed call: the reward's name in reports, what it was asked (images uint8 (N, H, W, 3)), the error."""

    reward: str
    batch: RewardBatch
    error: RewardFailed

    def saved(self) -> RewardFailed:
        """Save the images of the call in the run's folder, if there is one; the error, with a hint where they are."""
        folder = self.batch.context.run_folder
        if folder is None:
            return self.error
        try:
            place = self._save(_unused(self._place(folder)))
        except OSError as error:
            kept = f"the images of the call could not be saved: {error}"
        else:
            kept = f"the images of the call are in {place}"
        return RewardFailed(self.error.message, "; ".join(filter(None, (self.error.hint, kept))))

    def _place(self, folder: Path) -> Path:
        """Iterations are counted from 1 here, as in metrics and checkpoints."""
        name = re.sub(r"[^\w.-]+", "_", self.reward)
        return folder / FOLDER / f"iteration-{self.batch.context.iteration + 1:06d}" / name

    def _save(self, place: Path) -> Path:
        from PIL import Image

        batch, names = self.batch, []
        place.mkdir(parents=True)
        for image, image_id in zip(batch.images, batch.image_ids, strict=True):
            names.append(f"image-{image_id:06d}.png")
            Image.fromarray(image).save(place / names[-1])
        columns = zip(names, batch.image_ids, batch.group_ids, batch.prompts, batch.metadata, strict=True)
        document = {
            "reward": self.reward,
            "error": self.error.message,
            "hint": self.error.hint,
            "iteration": batch.context.iteration + 1,
            "seed": batch.context.seed,
            "images": [
                {"file": name, "image_id": image, "group_id": group, "prompt": prompt, "metadata": metadata}
                for name, image, group, prompt, metadata in columns
            ],
        }
        text = json.dumps(plain(document), indent=2, ensure_ascii=False)
        (place / BATCH_FILE).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        return place


def _unused(place: Path) -> Path:
    """The folder, or one numbered after it where another failure lies there already."""
    number, free = 1, place
    while free.exists():
        number += 1
        free = place.with_name(f"{place.name}-{number}")
    return free
