"""The quick start as a notebook: it runs from the first cell to the last, and is stored without outputs."""

from __future__ import annotations

import ast
import copy
import resource

import nbformat
import pytest
from nbclient import NotebookClient
from support.command_line import environment
from support.paths import ROOT

pytestmark = pytest.mark.integration

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
LIMIT = 180
"""CPU seconds for the whole notebook, so that the tests that run at the same time do not count."""
CELL_LIMIT = 600
"""Seconds for a cell on a busy machine."""


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(notebook, tmp_path_factory):
    """The cells with their outputs, and the CPU seconds of the kernel."""
    folder, began = tmp_path_factory.mktemp("notebook"), child_seconds()
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(copy.deepcopy(notebook), timeout=CELL_LIMIT, kernel_name="python3", resources=place)
    client.execute(env={**environment(), "IPYTHONDIR": str(folder / ".ipython")})
    return client.nb.cells, child_seconds() - began


def child_seconds() -> float:
    """The CPU seconds of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def outputs(cells, text: str) -> list[dict]:
    """The data and texts of the outputs of the only cell with this text."""
    (cell,) = [cell for cell in cells if cell.cell_type == "code" and text in cell.source]
    return [dict(each.get("data", {"text/plain": each.get("text", "")})) for each in cell.outputs]


def test_the_stored_notebook_has_no_outputs_and_fits_colab(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 6
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
    assert notebook.metadata.kernelspec.name == "python3"
    first, *others = code
    assert 'find_spec("tdmr1_core") is None' in first.source
    assert "%pip install" in first.source
    for cell in others:
        ast.parse(cell.source)


def test_the_notebook_trains_shows_images_and_exports(executed):
    cells, seconds = executed
    assert 5 < seconds < LIMIT
    assert "8 iterations" in str(outputs(cells, "resume=run.folder")[-1])
    assert any("iteration 6/6: reward" in str(each) for each in outputs(cells, 'model="tiny-tdm"'))
    assert any("image/png" in each for each in outputs(cells, "before_after.png"))
    sampled = outputs(cells, "side_by_side(run.sample")
    assert sum("image/png" in each for each in sampled) == 2
    assert "reward/mean" in str(outputs(cells, "run.metrics"))
    assert "gain" in str(outputs(cells, "run.evaluate"))
    assert "pytorch_lora_weights.safetensors" in str(outputs(cells, "run.export"))
