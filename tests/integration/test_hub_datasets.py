"""Prompts from datasets of the hub: a hub on this machine, the package `datasets`, and a run with a commit."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from support.command_line import environment, run_tdmr1, small
from support.fake_datasets import serving

from tdmr1_core.runs.checkpoints.run_config import TRAINING, read_header

pytestmark = pytest.mark.integration

CAPTIONS = ["two red circles", "three blue squares", None, "one green triangle"]
LOADER = """
import json, sys, warnings
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.prompts.sets import load_prompt_set
found = {}
for source in sys.argv[1:]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = load_prompt_set(source, "tiny")
            answer = {"prompts": [[each.text, dict(each.metadata)] for each in loaded.prompts], "commit": loaded.commit}
        except Tdmr1Error as error:
            answer = {"code": error.code, "values": error.values, "message": error.message, "hint": error.hint}
    reported = [str(each.message) for each in caught if getattr(each.message, "code", "") == "prompts-doubtful"]
    found[source] = {**answer, "warnings": reported}
print(json.dumps(found))
"""

COMPARER = """
import json, sys
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.layers import Flags, resolve_settings
from tdmr1_core.runs.checkpoints.fingerprints import differences, fingerprint_inputs
settings = {"prompts": {"evaluate": "count"}}
found = [
    fingerprint_inputs(resolve_settings(Flags(prompts=source, settings=settings), "train", discover()))
    for source in sys.argv[1:]
]
changed = []
for began, now in zip(found, found[1:]):
    try:
        changed.append([str(each) for each in differences(began, now)])
    except Tdmr1Error as error:
        changed.append([error.code, error.hint])
print(json.dumps({"commits": [each.commits for each in found], "changed": changed}))
"""


def parquet(captions: list, **columns: list) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"caption": captions, **columns}), file)
    return file.getvalue()


def rows(count: int, **changes: list) -> bytes:
    """The rows of the test dataset, with columns that are metadata and columns that are not."""
    columns = {
        "count": list(range(count)),
        "include": [[{"class": "circle", "count": 2}]] * count,
        "score": [0.5] * (count - 1) + [float("nan")],
        "thumbnail": [b"\x89PNG"] * count,
    }
    return parquet(CAPTIONS[:count], **{**columns, **changes})


@pytest.fixture(scope="module")
def hub():
    with serving() as found:
        files = {"data/train-00000-of-00001.parquet": rows(4), "data/test-00000-of-00001.parquet": rows(2)}
        found.first = found.add("owner/shapes", files)
        fewer = {**files, "data/train-00000-of-00001.parquet": rows(2)}
        found.same = found.add("owner/shapes", {**fewer, "other.md": b""})
        found.second = found.add("owner/shapes", fewer)
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def load(variables: dict, *sources: str, script: str = LOADER) -> dict:
    """What a script prints about sources, in one new process."""
    done = subprocess.run(
        [sys.executable, "-c", script, *sources],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def loaded(hub, home):
    first = f"owner/shapes@{hub.first}"
    sources = ("owner/shapes:caption", f"{first}:caption", f"{first}:caption@test", f"{first}:caption@train[:1]")
    sources += ("owner/shapes:captoin", "owner/shapes:count", "owner/shapes:caption@tset", "owner/absent:caption")
    sources += ("owner/shapes/large:caption", "owner/shapes@v9:caption")
    found = load(hub.environment(home), *(f"hf:{source}" for source in sources))
    return {source.removeprefix("hf:").replace(first, "FIRST"): answer for source, answer in found.items()}


def test_prompts_have_the_other_columns_as_metadata(hub, loaded):
    found = loaded["FIRST:caption"]
    metadata = {"caption": CAPTIONS[0], "count": 0, "include": [{"class": "circle", "count": 2}]}
    assert found["prompts"][0] == [CAPTIONS[0], metadata]
    assert [text for text, _ in found["prompts"]] == [CAPTIONS[0], CAPTIONS[1], CAPTIONS[3]]
    assert found["commit"] == hub.first
    assert any("row 3 has null" in each for each in found["warnings"])
    assert any("'score' is omitted" in each for each in found["warnings"])
    assert not any("thumbnail" in each for each in found["warnings"])


def test_splits_parts_and_revisions(hub, loaded):
    assert len(loaded["FIRST:caption@test"]["prompts"]) == 2
    assert len(loaded["FIRST:caption@train[:1]"]["prompts"]) == 1
    assert len(loaded["owner/shapes:caption"]["prompts"]) == 2
    assert loaded["owner/shapes:caption"]["commit"] == hub.second


@pytest.mark.parametrize(
    ("source", "code", "named"),
    [
        ("owner/shapes:captoin", "prompts-unknown", "'caption'"),
        ("owner/shapes:count", "prompts-unknown", "is not text"),
        ("owner/shapes:caption@tset", "prompts-unknown", "'train', 'test'"),
        ("owner/absent:caption", "hub-denied", "owner/absent"),
        ("owner/shapes@v9:caption", "hub-denied", "revision v9"),
        ("owner/shapes/large:caption", "prompts-unreadable", "large"),
    ],
)
def test_what_does_not_exist_is_named(loaded, source, code, named):
    assert loaded[source]["code"] == code, loaded[source]
    assert named in loaded[source]["message"]


def test_without_network_the_cache_is_read(hub, home, loaded):
    variables = hub.environment(home, HF_HUB_OFFLINE="1")
    cached, absent, other = "hf:owner/shapes:caption", "hf:owner/other:caption", f"hf:owner/shapes@{'0' * 40}:caption"
    found = load(variables, cached, absent, other)
    assert found[cached]["commit"] in (hub.first, hub.second)
    assert found[absent]["code"] == "hub-unavailable"
    assert found[other]["code"] == "hub-unavailable"


def test_the_fingerprints_of_a_run_have_the_commit_and_the_content(hub, home, loaded):
    sources = [f"hf:owner/shapes@{each}:caption" for each in (hub.first, hub.second, hub.same)]
    found = load(hub.environment(home), *sources, script=COMPARER)
    assert found["commits"] == [{TRAINING: each} for each in (hub.first, hub.second, hub.same)]
    (code, hint), unchanged = found["changed"]
    assert code == "resume-inputs"
    assert hub.first in hint
    assert unchanged == []


@pytest.mark.long
def test_a_resume_notices_a_changed_dataset(hub, home, loaded, tmp_path):
    variables = hub.environment(home)
    source, folder = "hf:owner/shapes:caption", tmp_path / "run"
    prompts = ("--prompts", source, "--reward", "jpeg_size", "--iterations", 1)
    run_tdmr1("train", *small(), *prompts, "--output", folder, fresh=True, **variables)
    header = read_header(folder)
    assert header.commits == {TRAINING: hub.second}
    third = hub.add("owner/shapes", {"data/train-00000-of-00001.parquet": rows(4)})
    assert third != hub.second
    resume = ("train", "--resume", folder, "--iterations", 2)
    refused = run_tdmr1(*resume, fresh=True, code=2, **variables)
    assert "[resume-inputs]" in refused.stderr
    assert hub.second in refused.stderr
    former = f"hf:owner/shapes@{hub.second}:caption"
    run_tdmr1(*resume, "--prompts", former, fresh=True, **variables)
