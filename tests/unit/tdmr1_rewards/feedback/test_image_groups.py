"""Folders of images: prompts, groups, order and mistakes in the metadata."""

import json

import pytest
from PIL import Image
from support.errors import raises
from support.feedback_images import solid_image

from tdmr1_rewards.feedback.image_groups import GROUP_SIZE, group_images

pytestmark = pytest.mark.unit


def draw(folder, *names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(solid_image(number)).save(path)


def listed(folder, **settings):
    """(file name, prompt) of each image, group by group."""
    groups = group_images(folder, **({"shuffle": False} | settings))
    return [[(item.image.relative_to(folder).as_posix(), item.prompt) for item in group] for group in groups]


def refused(folder, code, **values):
    """Check the error of a folder, and that it has a hint."""
    with raises(code, **values) as caught:
        group_images(folder)
    assert caught.value.hint


def test_metadata_jsonl_gives_prompts_and_groups(tmp_path):
    draw(tmp_path, "a.png", "sub/b.jpg", "c.png", "unlisted.png")
    lines = [
        {"file_name": "c.png", "text": "a cat"},
        {"file_name": "a.png", "text": "ein Käfer", "prompt": "not this"},
        {"file_name": "sub/b.jpg", "prompt": "a cat"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    assert listed(tmp_path) == [[("c.png", "a cat"), ("sub/b.jpg", "a cat")], [("a.png", "ein Käfer")]]


def test_metadata_csv_gives_prompts(tmp_path):
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text('\ufefffile_name,text\na.png,"one, two\nthree"\nb.png,x\n', encoding="utf-8")
    assert listed(tmp_path) == [[("a.png", "one, two\nthree")], [("b.png", "x")]]


def test_output_of_sample_gives_prompts_even_if_the_images_were_moved(tmp_path):
    draw(tmp_path, "000-x-00.png", "001-y-00.png", "grid.png")
    images = [{"file": "elsewhere/000-x-00.png", "prompt": "x"}, {"file": "/abs/001-y-00.png", "prompt": "y"}]
    (tmp_path / "other.json").write_text('{"images": 3}')
    (tmp_path / "zz.json").write_text(json.dumps({"role": "generator", "images": images, "grid": "grid.png"}))
    assert listed(tmp_path) == [[("000-x-00.png", "x")], [("001-y-00.png", "y")]]


def test_without_metadata_all_images_are_used_except_hidden_ones_and_the_feedback_folder(tmp_path):
    draw(tmp_path, "b.PNG", "deep/a.webp", "feedback/images/c.png", ".hidden/d.png", "e.bmp")
    (tmp_path / "notes.txt").write_text("")
    assert listed(tmp_path) == [[("b.PNG", ""), ("deep/a.webp", ""), ("e.bmp", "")]]


def test_large_groups_are_split(tmp_path):
    draw(tmp_path, *(f"{number:02}.png" for number in range(2 * GROUP_SIZE + 1)))
    assert [len(group) for group in listed(tmp_path)] == [GROUP_SIZE, GROUP_SIZE, 1]


def test_shuffling_is_deterministic_and_keeps_prompts_together(tmp_path):
    names = [f"{number:02}.png" for number in range(20)]
    draw(tmp_path, *names)
    rows = [{"file_name": name, "text": f"p{int(name[:2]) % 4}"} for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shuffled = listed(tmp_path, shuffle=True)
    assert shuffled == listed(tmp_path, shuffle=True)
    assert shuffled != listed(tmp_path)
    assert sorted(map(sorted, shuffled)) == sorted(map(sorted, listed(tmp_path)))
    assert all(len({prompt for _, prompt in group}) == 1 for group in shuffled)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "sub/../../secret.png", "link.png"])
def test_images_outside_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "folder"
    draw(folder, "a.png", "sub/b.png")
    draw(tmp_path, "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name}))
    refused(folder, "feedback-item", path=str(folder / "metadata.jsonl"), line=1, file_name=name)


@pytest.mark.parametrize(
    ("name", "text", "code", "values"),
    [
        ("metadata.jsonl", '{"file_name": "a.png"}\nnonsense', "file-unreadable", {"line": 2}),
        ("metadata.jsonl", '{"text": "a"}', "file-unreadable", {"line": 1, "missing": "file_name"}),
        ("metadata.jsonl", "[1]", "file-unreadable", {"line": 1, "missing": "file_name"}),
        ("metadata.jsonl", '{"file_name": "gone.png"}', "file-missing", {"line": 1, "file_name": "gone.png"}),
        ("metadata.csv", "name,text\na.png,x\n", "file-unreadable", {"line": 2, "missing": "file_name"}),
    ],
)
def test_errors_in_metadata_name_the_line(tmp_path, name, text, code, values):
    draw(tmp_path, "a.png")
    (tmp_path / name).write_text(text)
    refused(tmp_path, code, path=str(tmp_path / name), **values)


def test_a_missing_folder_an_empty_folder_and_unreadable_metadata_are_errors(tmp_path):
    refused(tmp_path, "feedback-empty", path=str(tmp_path))
    refused(tmp_path / "nothing", "file-missing", path=str(tmp_path / "nothing"))
    (tmp_path / "metadata.csv").write_bytes(b"\xff\xfe\xff")
    refused(tmp_path, "file-unreadable", path=str(tmp_path / "metadata.csv"), encoding="UTF-8")
