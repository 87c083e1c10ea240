"""Damaged images: PNG, JPEG and WebP files with changed bytes for every reader of images."""

from __future__ import annotations

import base64
import io
import json
import logging
import random
import resource
import struct
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stress.case import Case
from stress.scheduler import Part

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_MEMORY = 3 << 20
"""KiB that an item may use: torch is loaded, and an image may have 64 million pixels."""


def part(images: int) -> Part:
    """The part with this many images in an item."""
    return Part("images", partial(_run, images), seconds=2, size=images)


def _run(count: int, case: Case) -> None:
    logging.disable()
    warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
    folder = case.folder / "images"
    folder.mkdir()
    paths = [folder / f"{number:03d}.{case.rng.choice(FORMATS).lower()}" for number in range(count)]
    for path in paths:
        path.write_bytes(_damaged(case.rng, path.suffix[1:].upper()))
    intact = folder / "intact.png"
    intact.write_bytes(_encoded(case.rng, "PNG"))
    read = _read_all(case, paths)
    _decode_all(case, paths)
    _scan(case, folder, count + 1)
    case.tdmr1("rewards", "try", "jpeg_size", *case.rng.sample(paths, min(3, count)), "--prompt", "x", allowed=[0, 2])
    case.codes["read"] += read
    case.codes["refused"] += count - read
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case.check(memory < MOST_MEMORY, f"reading took {memory >> 10} MiB")


def _read_all(case: Case, paths: list[Path]) -> int:
    """Read files as `tdmr1 label` and `tdmr1 rewards try` do; returns how many are readable."""
    from tdmr1_rewards.calling.image_files import read_image
    from tdmr1_rewards.errors import Tdmr1Error

    return sum(_tried(case, f"reading {path.name}", partial(read_image, path), Tdmr1Error) for path in paths)


def _decode_all(case: Case, paths: list[Path]) -> None:
    """Decode the files as images of requests, in this process and by a reward server."""
    from support.hostile_requests import TOKEN, score_request, send_and_check
    from support.limited_server import serving

    from tdmr1_rewards.api import RewardResult, RewardSpec
    from tdmr1_rewards.calling.wire import decode_image
    from tdmr1_rewards.errors import Tdmr1Error
    from tdmr1_rewards.serving.server import build_app

    spec = RewardSpec(name="size", summary="", factory="a:b", image_format="array", batch_size=8)
    with serving(build_app(lambda batch: RewardResult([1.0] * len(batch)), spec, TOKEN)) as port:
        for path in paths:
            text = base64.b64encode(path.read_bytes()).decode()
            _tried(case, f"decoding {path.name}", partial(decode_image, text, 0), Tdmr1Error)
            document: dict[str, Any] = score_request()
            document["batch"]["images"][0] = text
            try:
                status = send_and_check(port, b"POST", b"/score", json.dumps(document).encode(), [])
                case.codes[f"HTTP {status}"] += 1
            except AssertionError as error:
                case.fault(f"the server's answer to {path.name}: {error}")


def _scan(case: Case, folder: Path, count: int) -> None:
    """Read the folder as `tdmr1 label` does: every broken image is skipped, and the others are in the round."""
    from tdmr1_rewards.feedback.image_groups import group_images
    from tdmr1_rewards.feedback.scanning import FolderScan
    from tdmr1_rewards.feedback.store import FeedbackStore

    skipped: list[str] = []
    store = FeedbackStore(case.folder / "feedback")
    scan = FolderScan(store, folder, group_images(folder), run="", judges=1, skip=skipped.append)
    scan.start()
    scan._thread.join()
    case.check(scan.read == scan.total == count, f"{scan.read} of {count} images were read")
    case.check(scan.error is None, f"the scan stopped: {scan.error}")
    case.check(bool(skipped) == bool(scan.skipped), f"{scan.skipped} images were skipped with {len(skipped)} warnings")
    store.close()


def _tried(case: Case, what: str, action: Callable[[], object], expected: type[Exception]) -> bool:
    """Whether an action succeeds; any other exception than the expected one is a fault."""
    try:
        action()
    except expected:
        return False
    except BaseException as error:
        case.fault(f"{what}: {type(error).__name__}: {error}")
        return False
    return True


def _encoded(rng: random.Random, kind: str) -> bytes:
    """A random image in a random mode as a file."""
    from PIL import Image

    size = (rng.randrange(1, 40), rng.randrange(1, 40))
    image = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    modes = {"PNG": ["RGB", "RGBA", "P", "L", "1", "LA", "I;16"], "JPEG": ["RGB", "L", "CMYK"], "WEBP": ["RGB", "RGBA"]}
    mode = rng.choice(modes[kind])
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    options: dict[str, Any] = {}
    if kind != "PNG" or mode not in ("I;16", "1"):
        options = {"exif": _exif(rng)} if rng.random() < 0.3 else {}
    if kind in ("PNG", "WEBP") and mode == "RGB" and rng.random() < 0.2:
        options |= {"save_all": True, "append_images": [image.rotate(90), image]}
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _exif(rng: random.Random) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = rng.choice([1, 3, 6, 8, 99])
    return exif.tobytes()


def _damaged(rng: random.Random, kind: str) -> bytes:
    """A file with one to three kinds of damage."""
    content = bytearray(_encoded(rng, kind))
    for _ in range(rng.choice([1, 1, 2, 3])):
        content = rng.choice(DAMAGES)(content, rng)
    return bytes(content)


def _flip(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice([1, 3, 30]) if content else 0):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _flip_head(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(2 if content else 0):
        content[rng.randrange(min(48, len(content)))] = rng.randrange(256)
    return content


def _large_number(content: bytearray, rng: random.Random) -> bytearray:
    """Write a large length or size somewhere."""
    value = rng.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 8193, 100_000])
    at = rng.randrange(len(content) + 1)
    content[at : at + 4] = struct.pack(rng.choice("<>") + "I", value)
    return content


DAMAGES: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    _flip,
    _flip,
    _flip_head,
    _large_number,
    lambda content, rng: content[: rng.randrange(len(content) + 1)],
    lambda content, rng: content[rng.randrange(len(content) + 1) :],
    lambda content, rng: content + bytearray(rng.randbytes(rng.choice([1, 1000]))),
    lambda content, rng: content[: len(content) // 2] + content,
)
