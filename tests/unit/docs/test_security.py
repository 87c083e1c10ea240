"""The limits in docs/security.md are those of the code."""

import re

import pytest
from support.paths import ROOT

from tdmr1_core.settings import yaml_text
from tdmr1_rewards.calling.image_files import FORMATS
from tdmr1_rewards.calling.wire import MAX_PIXELS
from tdmr1_rewards.feedback import server as labelling
from tdmr1_rewards.serving import limits, logs, score_request, server, web
from tdmr1_rewards.texts import documents

pytestmark = pytest.mark.unit

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
LIMITS = {
    "bytes of a config of a model or LoRA, or of another JSON document": documents.MOST_BYTES_OF_CONFIG,
    "levels of lists and objects in JSON and YAML": documents.MOST_DEPTH,
    "characters of a YAML file": yaml_text.MOST_CHARACTERS,
    "values of a YAML file, where each alias counts as what it stands for": yaml_text.MOST_VALUES,
    "bytes of a prompt file": documents.MOST_BYTES,
    "characters of a line of a prompt file": documents.LONGEST_PROMPT + documents.LONGEST_METADATA,
    "open connections": limits.MOST_CONNECTIONS,
    "seconds until a request begins": limits.TIME["request"],
    "seconds for the headers": limits.TIME["headers"],
    "bytes of headers that arrive in parts": limits.MOST_HEADERS,
    f"seconds for the body, and for each further {limits.RATE} bytes one more": limits.TIME["body"],
    f"seconds to read an answer, and for each further {limits.RATE} bytes one more": limits.TIME["reader"],
    "bytes of the body of a scoring request": server.MAX_BODY,
    "bytes of the body of a labelling request": labelling.MAX_BODY,
    "images of a scoring request": score_request.MOST_IMAGES,
    "pixels of one image": MAX_PIXELS,
    "pixels of all images of a request": score_request.MOST_PIXELS,
    "characters of a prompt": score_request.LONGEST_PROMPT,
    "characters of the metadata of an image": score_request.LONGEST_METADATA,
    "levels of lists and objects in the JSON of a request": web.MOST_DEPTH,
    "waiting scoring requests": server.MAX_WAITING,
    f"lines of the log in {logs.PERIOD:.0f} seconds": logs.LINES,
    "characters of a line of the log": logs.LONGEST,
}


def test_the_page_has_every_limit_with_its_value():
    rows = dict(re.findall(r"^\| ([^|]+) \| (\d+)[^|]* \|$", PAGE, re.MULTILINE))
    assert {name: float(value) for name, value in rows.items()} == LIMITS


def test_the_page_names_the_formats_of_images_and_the_depth_of_metadata():
    assert f"these formats only: {', '.join(FORMATS)}." in PAGE
    assert f"at most {documents.MOST_DEPTH} levels" in PAGE
