"""One example per error code of feedback, servers, the contract checks, and the commands label and rewards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def feedback_store(tmp_path: Path) -> None:
    from tdmr1_rewards.feedback.database import Database

    (tmp_path / "answers.sqlite").write_text("not a database " * 100)
    Database(tmp_path / "answers.sqlite")


def feedback_item(tmp_path: Path) -> None:
    from tdmr1_rewards.feedback.image_groups import group_images

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "metadata.jsonl").write_text('{"file_name": "../secret.png"}')
    group_images(tmp_path / "images")


def feedback_empty(tmp_path: Path) -> None:
    from tdmr1_rewards.feedback.human import find_answers

    find_answers(tmp_path)


def address_invalid(tmp_path: Path) -> None:
    from tdmr1_rewards.serving.addresses import listen

    listen("127.0.0.1", 70000)


def reward_images(tmp_path: Path) -> None:
    from tdmr1_rewards.api import RewardExample
    from tdmr1_rewards.contract.checks import example_images

    example_images([RewardExample(image=np.zeros((4, 4)), prompt="a cat", good=True)])


def argument_invalid(tmp_path: Path) -> None:
    from tdmr1_cli.commands.rewards.common import parse_options

    parse_options(["threshold"])


def file_exists(tmp_path: Path) -> None:
    from tdmr1_cli.commands.rewards.new import command

    (tmp_path / "my-reward").mkdir()
    (tmp_path / "my-reward" / "notes.txt").touch()
    command("my-reward", tmp_path / "my-reward")


def file_missing(tmp_path: Path) -> None:
    from tdmr1_rewards.feedback.image_groups import group_images

    group_images(tmp_path / "images")


def file_unreadable(tmp_path: Path) -> None:
    from tdmr1_rewards.calling.image_files import read_image

    (tmp_path / "notes.txt").write_text("not an image")
    read_image(tmp_path / "notes.txt")


def not_writable(tmp_path: Path) -> None:
    from tdmr1_rewards.feedback.store import FeedbackStore

    (tmp_path / "feedback").touch()
    FeedbackStore(tmp_path / "feedback")


EXAMPLES: dict[str, Callable[[Path], None]] = {
    "feedback-store": feedback_store,
    "feedback-item": feedback_item,
    "feedback-empty": feedback_empty,
    "address-invalid": address_invalid,
    "reward-images": reward_images,
    "argument-invalid": argument_invalid,
    "file-exists": file_exists,
    "file-missing": file_missing,
    "file-unreadable": file_unreadable,
    "not-writable": not_writable,
}
