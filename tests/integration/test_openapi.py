"""Requests that schemathesis derives from the OpenAPI schemas of the reward server and of the labelling page."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.command_line import environment
from support.own_environment.layered import layered_environment, run
from support.paths import ROOT, TESTS

pytestmark = pytest.mark.integration

OPERATIONS = {"POST /score", "GET /info", "GET /health", "GET /api/state", "GET /api/items", "GET /api/images/{hash}"}
OPERATIONS |= {"POST /api/answers", "POST /api/undo", "GET /"}


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("openapi") / "environment"
    return layered_environment(folder, TESTS / "support" / "openapi" / "requirements.txt")


@pytest.mark.parametrize("examples", [3, pytest.param(150, marks=pytest.mark.long)])
def test_no_request_to_an_operation_of_the_servers_causes_an_internal_error(python, examples):
    variables = environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(TESTS)]))
    command = [str(python), "-m", "support.openapi.check_servers", str(examples)]
    found = json.loads(run(command, env=variables).stdout)
    assert found.keys() >= OPERATIONS
    for operation in ("POST /score", "POST /api/undo", "GET /api/state"):
        assert "200" in found[operation]
        assert any(status.startswith("4") for status in found[operation])
