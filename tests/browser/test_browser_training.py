"""Trains the embedded model with answers given in a real browser. Without answers, its images do not change."""

import json
import subprocess
import threading

import numpy as np
import pytest
from human_learning import images_of
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from scripted_person import is_red
from support.command_line import run_tdmr1, start_tdmr1

from tdmr1_core.runs.looking.intervals import paired_gain

pytestmark = pytest.mark.browser

ITERATIONS = 12
IMAGES = 24
"""Images of an iteration of the preset: 4 groups of 6."""
LOOK = """() => {
    const image = document.querySelector("#stage img");
    if (!image || !image.complete || document.getElementById("like").disabled) return null;
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const { width, height, data } = context.getImageData(0, 0, canvas.width, canvas.height);
    return { source: image.src, width, height, data: [...data] };
}"""
"""Returns the pixels of the image on the stage; null if there is none to judge."""


def training(folder, iterations=ITERATIONS, **options):
    """The command of a small training with the reward `human`, on prompts that name no color."""
    reward = {"name": "human", "options": {"mode": "wait", **options}}
    sets = [f"rewards={json.dumps([reward])}", "saving.tensorboard=false", "saving.samples_every=0"]
    sets.append("evaluation.images=4")
    return [
        *("train", "--model", "tiny-tdm", "--preset", "tiny-human", "--iterations", iterations, "--output", folder),
        *(part for item in sets for part in ("--set", item)),
    ]


def pixels_of(look):
    """The pixels from LOOK, uint8 (H, W, 3)."""
    return np.array(look["data"], dtype=np.uint8).reshape(look["height"], look["width"], 4)[..., :3]


def judge_one(page, clicks):
    """Judge the image on the stage of this tab, if there is one. Returns whether the page accepted the answer.

    The page ignores answers just after the image has changed by itself; the caller tries again.
    """
    page.bring_to_front()
    look = page.evaluate(LOOK)
    if look is None:
        return False
    likes = is_red(pixels_of(look))
    if clicks:
        page.click("#like" if likes else "#dislike")
    else:
        page.keyboard.press("ArrowRight" if likes else "ArrowLeft")
    changed = "source => document.querySelector('#stage img')?.src !== source"
    try:
        page.wait_for_function(changed, arg=look["source"], timeout=2000)
    except PlaywrightTimeout:
        return False
    return True


def red_images(folder):
    """For 480 images before and after the training: whether each is red (0 or 1), and the group of each."""
    with images_of(folder) as (before, after):
        red = [np.array([is_red(image) for image in images.images], float) for images in (before, after)]
        return (*red, np.array(before.group_ids))


def answer_a_run(browser, folder, iterations, images, *settings):
    """Train, and answer in the browser with a reload and a second tab. Checks that all `images` are judged."""
    process = start_tdmr1(*training(folder, iterations), *settings, stderr=subprocess.PIPE)
    lines = []
    found = threading.Event()

    def listen():
        for line in process.stderr:
            lines.append(line)
            if line.startswith("labelling page: "):
                found.set()

    threading.Thread(target=listen, daemon=True).start()
    assert found.wait(180), "".join(lines)
    url = next(line for line in lines if line.startswith("labelling page: ")).split()[-1]
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    pages = [context.new_page()]
    pages[0].goto(url)
    judged = looks = 0
    while process.poll() is None:
        page = pages[looks % len(pages)]
        looks += 1
        if not judge_one(page, clicks=judged % 3 == 0):
            page.wait_for_timeout(100)
            continue
        judged += 1
        if judged == images // 4:
            page.reload()
        if judged == images // 2:
            pages.append(context.new_page())
            pages[1].goto(url)
    assert process.returncode in (0, 1), "".join(lines)  # 1: no group had both red images and others
    context.close()

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward/human/unjudged"] for row in rows] == [0] * iterations
    assert images <= judged <= images + max(2, images // 10)  # two tabs may show the same image at once


def test_a_person_at_the_page_judges_every_image_of_a_run(browser, tmp_path):
    few = ("--set", "batch.groups=2", "--set", "batch.group_size=4")
    answer_a_run(browser, tmp_path / "run", 1, 8, *few)


@pytest.mark.long
def test_a_person_at_the_page_makes_images_redder(browser, tmp_path):
    folder = tmp_path / "run"
    answer_a_run(browser, folder, ITERATIONS, ITERATIONS * IMAGES)
    gain = paired_gain(*red_images(folder))
    assert gain.n == 480
    assert gain.low > 0.1, gain


@pytest.mark.long
def test_without_answers_the_images_do_not_change(tmp_path):
    folder = tmp_path / "run"
    run_tdmr1(*training(folder, minutes=0.005), code=2)
    before, after, _ = red_images(folder)
    assert np.array_equal(before, after)
    assert 0.1 < before.mean() < 0.4
