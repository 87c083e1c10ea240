"""What people say of the pictures: a like or a dislike on a page of this machine, asked for while the run goes on.

The paper's first example of a reward that cannot be differentiated (arXiv 2603.07700, introduction). A picture's score
is the share of likes among the likes and dislikes that it got, 0 to 1, None where it got neither. Answers are kept in
the run's folder `feedback/` (or in `folder`) under a hash of the picture's pixels, so that a run that is continued
draws the same pictures and finds the answers it had.

wait     every picture of an iteration is shown, and the run waits for the answers
stored   the answers already given, to these very pictures; nobody is asked
model    a small model of all answers so far judges, where it knows enough; some pictures are shown for more answers
mixed    people judge a share of each group, the model the rest
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.calling import interrupts
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.database import FILE
from tdmr1_rewards.feedback.features import Features, extractor
from tdmr1_rewards.feedback.hashing import image_hash
from tdmr1_rewards.feedback.image_groups import FEEDBACK
from tdmr1_rewards.feedback.learning import PreferenceLearner
from tdmr1_rewards.feedback.records import GivenAnswer, NewItem, Progress, Round, like_fraction
from tdmr1_rewards.feedback.serving import FeedbackPage
from tdmr1_rewards.feedback.store import FeedbackStore
from tdmr1_rewards.options import RewardOptions

POLL = 0.3
"""Seconds between two looks at the answers while the run waits."""


class HumanOptions(RewardOptions):
    """Who judges, how long the run waits for them, and where answers come from."""

    mode: Literal["wait", "stored", "model", "mixed"] = Field(
        "wait",
        description="wait: for people; stored: answers already given; model: a model of them; mixed: people for a "
        "share of each group, the model for the rest",
    )
    judges: int = Field(1, ge=1, le=100, description="how many people judge each picture that is shown")
    minutes: float = Field(30.0, gt=0, description="the longest an iteration waits for people (wait, mixed)")
    enough: float = Field(
        1.0, gt=0, le=1, description="the share of shown pictures whose answers end the waiting (wait, mixed)"
    )
    people_share: float = Field(0.25, gt=0, le=1, description="the share of each group that people judge (mixed)")
    show: int = Field(12, ge=0, description="pictures of an iteration that are shown without waiting (model)")
    least_answers: int = Field(40, ge=20, description="likes and dislikes that the model needs at least (model, mixed)")
    features: Features = Field(
        "pixels", description="what the model looks at: colours and edges (pixels), or a CLIP's embedding (clip)"
    )
    clip: str = Field("openai/clip-vit-large-patch14", description="the CLIP of `features: clip`, by name or folder")
    answers: tuple[Path, ...] = Field(
        (), description="further folders with answers: of a run, or labelled by `tdmr1 label` (stored, model, mixed)"
    )
    folder: Path | None = Field(None, description="where answers are kept; in the run's folder by default")
    host: str = Field("127.0.0.1", description="where the page listens; another address opens it to other machines")
    port: int = Field(0, ge=0, le=65535, description="the page's port; a free one by default")


class Human:
    """Scores pictures by people's answers, 0 to 1; None where nobody, and no model that knows enough, has judged."""

    def __init__(self, options: HumanOptions) -> None:
        self._options = options
        self._device = "cpu"
        self._store: FeedbackStore | None = None
        self._others: list[FeedbackStore] = []
        self._page: FeedbackPage | None = None
        self._learner: PreferenceLearner | None = None

    def setup(self, device: str) -> None:
        """Open the answers of other folders. Raises Tdmr1Error where one has none."""
        self._device = device
        self._others = [FeedbackStore(find_answers(folder)) for folder in self._options.answers]

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score N RGB images; in the modes that wait, after people have judged or the time is over.

        Raises Tdmr1Error outside a run where no `folder` is named, and Interrupted where the waiting is interrupted.
        """
        store = self._store = self._store or FeedbackStore(self._folder(batch))
        shown = self._shown(batch)
        if shown:
            self._ask(store, batch, shown)
        hashes = [image_hash(image) for image in batch.images]
        answers = [self._answers(store, name) for name in hashes]
        scores = [like_fraction(given) for given in answers]
        details: list[dict[str, Any]] = [dict(Counter(each.answer for each in given)) for given in answers]
        if self._options.mode in ("model", "mixed"):
            self._fill_in(store, batch, scores, details)
        return RewardResult(scores, details)

    def close(self) -> None:
        """Close the page and the answers."""
        if self._page is not None:
            self._page.stop()
        for store in filter(None, (self._store, *self._others)):
            store.close()

    def _folder(self, batch: RewardBatch) -> Path:
        """Where this run keeps its answers."""
        if self._options.folder is not None:
            return self._options.folder
        if batch.context.run_folder is None:
            raise Tdmr1Error("there is no run whose folder could keep people's answers", "name one with `folder`")
        return batch.context.run_folder / FEEDBACK

    def _shown(self, batch: RewardBatch) -> list[int]:
        """Which images people are to see: all, a share of each group, a few, or none."""
        options, context = self._options, batch.context
        if options.mode == "wait":
            return list(range(len(batch)))
        if options.mode == "stored":
            return []
        draw = random.Random(f"{context.seed}/{context.iteration}/{batch.image_ids[0]}")
        if options.mode == "model":
            return sorted(draw.sample(range(len(batch)), min(options.show, len(batch))))
        chosen = []
        for group in dict.fromkeys(batch.group_ids):
            rows = [row for row, other in enumerate(batch.group_ids) if other == group]
            chosen += sorted(draw.sample(rows, math.ceil(options.people_share * len(rows))))
        return chosen

    def _ask(self, store: FeedbackStore, batch: RewardBatch, rows: Sequence[int]) -> None:
        """Show images on the page, and wait for the answers unless the model is to judge."""
        waits = self._options.mode != "model"
        deadline = time.time() + 60 * self._options.minutes if waits else None
        context = batch.context
        groups: dict[int, list[NewItem]] = {}
        for row in rows:
            groups.setdefault(batch.group_ids[row], []).append(NewItem(batch.images[row], batch.prompts[row]))
        opened = store.open_round(
            f"iteration {context.iteration + 1}",
            list(groups.values()),
            run=context.run_folder.name if context.run_folder else "",
            step=context.iteration,
            judges=self._options.judges,
            deadline=deadline,
        )
        if self._page is None:
            self._page = FeedbackPage.start(store.folder, self._options.host, self._options.port)
            interrupts.report(f"people judge at {self._page.url}")
        if waits:
            self._wait(store, opened, self._page)

    def _wait(self, store: FeedbackStore, opened: Round, page: FeedbackPage) -> None:
        """Until enough of the round is judged, or its time is over; it is closed in the end."""
        until = time.monotonic() + 60 * self._options.minutes  # the round's own deadline, of the clock, is for the page
        store.set_message("the training waits for these answers")
        try:
            while True:
                progress, left = store.progress(opened.id), until - time.monotonic()
                if progress.done >= self._options.enough * progress.items or left <= 0:
                    break
                interrupts.report(_waiting(progress, left, page.url))
                page.ensure()
                interrupts.pause(POLL)
        finally:
            store.close_round(opened.id)
            store.set_message("the training goes on; its next pictures come by themselves")

    def _answers(self, store: FeedbackStore, name: str) -> list[GivenAnswer]:
        """All that people said of a picture, here and in the other folders."""
        return [answer for each in (store, *self._others) for answer in each.answers_by_hash([name])[name]]

    def _fill_in(
        self,
        store: FeedbackStore,
        batch: RewardBatch,
        scores: list[float | None],
        details: list[dict[str, Any]],
    ) -> None:
        """Let the model judge what nobody has, if it knows enough; what it rests on is told of every image."""
        if self._learner is None:
            look = extractor(self._options.features, self._options.clip, self._device)
            self._learner = PreferenceLearner([store, *self._others], look, self._options.least_answers)
        # A run that goes on from an earlier iteration must not know what was asked later. Another folder has more runs.
        evidence = self._learner.learn(batch.context.iteration if self._options.folder is None else None)
        store.set_message(f"the model of your answers has {evidence}")
        rows = [row for row, score in enumerate(scores) if score is None]
        foretold = self._learner.predict([batch.images[row] for row in rows])
        for row, probability in zip(rows, foretold, strict=True):
            scores[row] = probability
        told: dict[str, Any] = {"model_answers": evidence.answers}
        if evidence.accuracy is not None:
            told |= {"model_accuracy": evidence.accuracy, "model_majority": evidence.majority}
        for detail in details:
            detail["metrics"] = told


def find_answers(folder: Path) -> Path:
    """The folder with answers that `folder` is or, as a run or a labelled folder, holds. Raises Tdmr1Error if none."""
    for place in (folder, folder / FEEDBACK):
        if (place / FILE).is_file():
            return place
    raise Tdmr1Error(f"{folder} holds no answers of people", "name a run, or a folder that `tdmr1 label` has shown")


def with_absolute_paths(options: HumanOptions) -> HumanOptions:
    """The options as they mean the same from any folder."""
    own = {"answers": tuple(path.absolute() for path in options.answers)}
    return options.model_copy(update=own | ({"folder": options.folder.absolute()} if options.folder else {}))


def _waiting(progress: Progress, left: float, url: str) -> str:
    minutes, seconds = divmod(max(round(left), 0), 60)
    return (
        f"waiting for people: {progress.done} of {progress.items} pictures judged, "
        f"{minutes}:{seconds:02d} left; judge at {url}"
    )
