"""The reward `human`: people like or dislike the images on a local page while the run trains.

This is the first example of a non-differentiable reward in the paper (arXiv 2603.07700, introduction). The score of an
image is likes / (likes + dislikes), 0 to 1, and None without likes and dislikes. Answers are stored in `feedback/` of
the run folder (or in `folder`) under a hash of the pixels. A resumed run generates the same images again and finds
their answers.

wait     people judge every image of an iteration, and the run waits for them
stored   uses stored answers to exactly these images; people are not asked
model    a preference model, trained on all answers so far, scores the images once it is accurate enough; some images
         are shown on the page to collect more answers
mixed    people judge a fraction of each group, the model scores the rest
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tdmr1_rewards.api import RewardBatch, RewardResult, RunPreview
from tdmr1_rewards.calling import interrupts
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.database import FILE
from tdmr1_rewards.feedback.features import Features, extractor
from tdmr1_rewards.feedback.hashing import image_hash
from tdmr1_rewards.feedback.image_groups import FEEDBACK
from tdmr1_rewards.feedback.learning import PreferenceLearner
from tdmr1_rewards.feedback.preference import LEAST_OF_EACH
from tdmr1_rewards.feedback.question import Question, shared_question
from tdmr1_rewards.feedback.records import GivenAnswer, NewItem, Progress, Round, like_fraction
from tdmr1_rewards.feedback.serving import FeedbackPage
from tdmr1_rewards.feedback.store import FeedbackStore
from tdmr1_rewards.options import RewardOptions

POLL = 0.3
"""Seconds between two checks for new answers while the run waits."""


class HumanOptions(RewardOptions):
    """Who judges the images, how long the run waits for people, and which stored answers are used."""

    mode: Literal["wait", "stored", "model", "mixed"] = Field(
        "wait",
        description="wait: people judge all images; stored: only stored answers; model: a model of the answers; "
        "mixed: people judge a fraction of each group, the model the rest",
    )
    question: Question | None = Field(
        None,
        description="what people are asked; like means yes, dislike means no (default: the question of the answers "
        'that are used, or "Do you like this image?")',
    )
    judges: int = Field(1, ge=1, le=100, description="number of people who judge each image that is shown")
    minutes: float = Field(
        30.0, gt=0, description="longest time an iteration waits for people, in minutes (wait, mixed)"
    )
    enough: float = Field(
        1.0, gt=0, le=1, description="stop waiting when this fraction of the shown images is judged (wait, mixed)"
    )
    people_share: float = Field(0.25, gt=0, le=1, description="fraction of each group that people judge (mixed)")
    show: int = Field(12, ge=0, description="images per iteration that are shown without waiting (model)")
    least_answers: int = Field(
        40, ge=20, description="least number of likes and dislikes to train the model (model, mixed)"
    )
    features: Features = Field(
        "pixels", description="features of the model: colors and edges (pixels) or a CLIP embedding (clip)"
    )
    clip: str = Field(
        "openai/clip-vit-large-patch14", description="CLIP model for `features: clip`, hub name or folder"
    )
    answers: tuple[Path, ...] = Field(
        (), description="more folders with answers: runs, or folders of `tdmr1 label` (stored, model, mixed)"
    )
    folder: Path | None = Field(None, description="folder for the answers; default: feedback/ in the run folder")
    host: str = Field("127.0.0.1", description="address of the page; any other address lets other machines connect")
    port: int = Field(0, ge=0, le=65535, description="port of the page; 0 means a free port")


class Human:
    """Scores images by people's answers, 0 to 1; None for an image that neither people nor the model have judged."""

    def __init__(self, options: HumanOptions) -> None:
        self._options = options
        self._device = "cpu"
        self._store: FeedbackStore | None = None
        self._others: list[FeedbackStore] = []
        self._page: FeedbackPage | None = None
        self._learner: PreferenceLearner | None = None

    def setup(self, device: str) -> None:
        """Open the folders of the option `answers`. Raises Tdmr1Error if one has no answers."""
        self._device = device
        self._others = [FeedbackStore(find_answers(folder)) for folder in self._options.answers]

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score N RGB images. The modes `wait` and `mixed` first wait for people, at most for `minutes`.

        Raises Tdmr1Error outside a run if the option `folder` is not set, and Interrupted if the run is
        stopped while it waits.
        """
        store = self._store = self._store or self._open(batch)
        shown = self._choose_shown(batch)
        if shown:
            self._show(store, batch, shown)
        hashes = [image_hash(image) for image in batch.images]
        answers = [self._answers(store, name) for name in hashes]
        scores = [like_fraction(given) for given in answers]
        details: list[dict[str, Any]] = [dict(Counter(each.answer for each in given)) for given in answers]
        if self._options.mode in ("model", "mixed"):
            self._predict_missing(store, batch, scores, details)
        for score, detail in zip(scores, details, strict=True):
            if score is None:
                detail["reason"] = self._why_unjudged
        return RewardResult(scores, details)

    @property
    def _why_unjudged(self) -> str:
        """Why an image has no score."""
        reasons = {
            "wait": "nobody judged the image in time",
            "stored": "there is no stored answer to the image",
            "model": "the preference model has too few answers",
            "mixed": "nobody judged the image in time, and the preference model has too few answers",
        }
        return reasons[self._options.mode]

    def close(self) -> None:
        """Stop the page and close the stores."""
        if self._page is not None:
            self._page.stop()
        for store in filter(None, (self._store, *self._others)):
            store.close()

    def _open(self, batch: RewardBatch) -> FeedbackStore:
        """The store of this run, with the question of the run. Raises Tdmr1Error for answers to another question."""
        store = FeedbackStore(self._folder(batch))
        try:
            question = shared_question([store, *self._others], self._options.question)
            if question is not None:
                store.set_question(question)
        except BaseException:
            store.close()
            raise
        return store

    def _folder(self, batch: RewardBatch) -> Path:
        """The feedback folder of this run."""
        if self._options.folder is not None:
            return self._options.folder
        if batch.context.run_folder is None:
            raise Tdmr1Error(
                "the reward human has no folder for answers, because it is used outside a run",
                "set its option `folder`",
                code="reward-options",
                values={"reward": "human", "option": "folder"},
            )
        return batch.context.run_folder / FEEDBACK

    def _choose_shown(self, batch: RewardBatch) -> list[int]:
        """The rows of the images to show on the page: all, a fraction of each group, a few, or none."""
        options, context = self._options, batch.context
        if options.mode == "wait":
            return list(range(len(batch)))
        if options.mode == "stored":
            return []
        rng = random.Random(f"{context.seed}/{context.iteration}/{batch.image_ids[0]}")
        if options.mode == "model":
            return sorted(rng.sample(range(len(batch)), min(options.show, len(batch))))
        chosen = []
        for group in dict.fromkeys(batch.group_ids):
            rows = [row for row, other in enumerate(batch.group_ids) if other == group]
            chosen += sorted(rng.sample(rows, math.ceil(options.people_share * len(rows))))
        return chosen

    def _show(self, store: FeedbackStore, batch: RewardBatch, rows: Sequence[int]) -> None:
        """Open a round with the images of `rows`, and wait for the answers unless the mode is `model`."""
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
            interrupts.report(f"labelling page: {self._page.url}")
        if waits:
            self._wait(store, opened, self._page)

    def _wait(self, store: FeedbackStore, opened: Round, page: FeedbackPage) -> None:
        """Wait until enough of the round is judged or its time is over, then close the round."""
        # The deadline stored in the round is wall-clock time, for display only: the clock may be changed meanwhile.
        until = time.monotonic() + 60 * self._options.minutes
        store.set_message("The training run waits for these answers.")
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
            store.set_message("Training continues. The next images appear here automatically.")

    def _answers(self, store: FeedbackStore, name: str) -> list[GivenAnswer]:
        """All valid answers to the image with this hash, from this store and the other folders."""
        return [answer for source in (store, *self._others) for answer in source.answers_by_hash([name])[name]]

    def _predict_missing(
        self,
        store: FeedbackStore,
        batch: RewardBatch,
        scores: list[float | None],
        details: list[dict[str, Any]],
    ) -> None:
        """Replace missing scores by predictions of the model, and add its evidence to the metrics of every image."""
        if self._learner is None:
            extract = extractor(self._options.features, self._options.clip, self._device)
            self._learner = PreferenceLearner([store, *self._others], extract, self._options.least_answers)
        # A run that resumes from an earlier iteration must not use answers to later iterations. In the option `folder`
        # the answers of several runs are mixed, so their iterations cannot be compared.
        evidence = self._learner.learn(batch.context.iteration if self._options.folder is None else None)
        store.set_message(f"Preference model: {evidence}.")
        rows = [row for row, score in enumerate(scores) if score is None]
        predicted = self._learner.predict([batch.images[row] for row in rows])
        for row, probability in zip(rows, predicted, strict=True):
            scores[row] = probability
        metrics: dict[str, Any] = {"model_answers": evidence.answers}
        if evidence.accuracy is not None:
            metrics |= {"model_accuracy": evidence.accuracy, "model_majority": evidence.majority}
        for detail in details:
            detail["metrics"] = metrics


def find_answers(folder: Path) -> Path:
    """`folder` or its subfolder `feedback/`, whichever contains answers. Raises Tdmr1Error if neither does."""
    for candidate in (folder, folder / FEEDBACK):
        if (candidate / FILE).is_file():
            return candidate
    raise Tdmr1Error(
        f"the folder {folder} contains no answers",
        "name a run that trained the reward 'human', or a folder with answers from `tdmr1 label`",
        code="feedback-empty",
        values={"path": str(folder)},
    )


def check_answers(preview: RunPreview) -> list[str | None]:
    """None for each prompt.

    Raises Tdmr1Error for answers to different questions, and if the mode is `model` and there are too few answers to
    train it.
    """
    options: HumanOptions = preview.options
    own = preview.run_folder / FEEDBACK if preview.run_folder else None
    folders = [find_answers(folder) for folder in options.answers]
    folders += [folder for folder in (options.folder, own) if folder is not None and (folder / FILE).is_file()]
    with ExitStack() as opened:
        stores = [FeedbackStore(folder) for folder in folders]
        for store in stores:
            opened.callback(store.close)
        shared_question(stores, options.question)
        answers = [answer for store in stores for answer in store.answers()] if options.mode == "model" else []
    if options.mode == "model":
        images = {kind: {each.item.hash for each in answers if each.answer == kind} for kind in ("like", "dislike")}
        total = sum(each.answer in images for each in answers)
        likes, dislikes = len(images["like"]), len(images["dislike"])
        if total < options.least_answers or min(likes, dislikes) < LEAST_OF_EACH:
            raise Tdmr1Error(
                f"the reward human with mode=model needs {options.least_answers} answers, {LEAST_OF_EACH} of each "
                f"kind; found {total}, for {likes} liked and {dislikes} disliked images",
                "name folders with more answers in its option `answers` (see `tdmr1 label`), or use mode=wait or mixed",
                code="feedback-empty",
                values={
                    "needed": options.least_answers,
                    "of_each": LEAST_OF_EACH,
                    "likes": likes,
                    "dislikes": dislikes,
                },
            )
    return [None] * len(preview.prompts)


def with_absolute_paths(options: HumanOptions) -> HumanOptions:
    """The options with absolute paths, so that they do not depend on the current directory."""
    absolute = {"answers": tuple(path.absolute() for path in options.answers)}
    return options.model_copy(update=absolute | ({"folder": options.folder.absolute()} if options.folder else {}))


def _waiting(progress: Progress, left: float, url: str) -> str:
    minutes, seconds = divmod(max(round(left), 0), 60)
    return (
        f"waiting for people: {progress.done} of {progress.items} images judged, "
        f"{minutes}:{seconds:02d} left; labelling page: {url}"
    )
