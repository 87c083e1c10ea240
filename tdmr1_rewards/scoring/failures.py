"""The errors of rewards. The images of a failed call are saved, so that the call can be inspected and repeated."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmr1_rewards.api import RewardBatch
from tdmr1_rewards.calling.wire import plain
from tdmr1_rewards.errors import Tdmr1Error, join_hints
from tdmr1_rewards.texts.redaction import redact_texts, redact_tree

FOLDER, BATCH_FILE = "failures", "batch.json"


class RewardFailed(Tdmr1Error):
    """A reward failed, after all retries. The trained weights of the run are intact, so it can be resumed."""

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        code: str = "reward-failed",
        values: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint, code=code, values=values)


@dataclass(frozen=True, eq=False)
class Failure:
    """A failed call: the name of the reward, the batch (images uint8 (N, H, W, 3)) and the error."""

    reward: str
    batch: RewardBatch
    error: RewardFailed

    def saved(self) -> RewardFailed:
        """Save the images of the call in the run folder, if there is one. The hint of the returned error names it."""
        run_folder = self.batch.context.run_folder
        if run_folder is None:
            return self.error
        values = self.error.values
        folder = _unused(self._folder(run_folder))
        try:
            self._save(folder)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            saved = f"the images of the call could not be saved: {error}"
            values = {**values, "save_error": str(error)}
        else:
            saved = f"the images of the call are in {folder}"
            values = {**values, "folder": str(folder)}
        hint = join_hints(self.error.hint, saved)
        return RewardFailed(self.error.message, hint, code=self.error.code, values=values)

    def _folder(self, run_folder: Path) -> Path:
        """The folder for the images. Iterations are counted from 1 here, as in metrics and checkpoints."""
        name = re.sub(r"[^\w.-]+", "_", self.reward)
        return run_folder / FOLDER / f"iteration-{self.batch.context.iteration + 1:06d}" / name

    def _save(self, folder: Path) -> None:
        from PIL import Image

        batch, names = self.batch, []
        folder.mkdir(parents=True)
        for image, image_id in zip(batch.images, batch.image_ids, strict=True):
            names.append(f"image-{image_id:06d}.png")
            Image.fromarray(image).save(folder / names[-1])
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
        text = json.dumps(redact_texts(redact_tree(plain(document))), indent=2, ensure_ascii=False)
        (folder / BATCH_FILE).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _unused(folder: Path) -> Path:
    """The folder, or with a number at the end if it exists already."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
