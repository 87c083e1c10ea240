"""The import graph: no cycle, no import of a higher layer, and a light `tdmr1_rewards`."""

from __future__ import annotations

import subprocess
import sys

import pytest
import way_in
from support.paths import ROOT

pytestmark = pytest.mark.unit

IMPORTS = way_in.read_imports(ROOT)


def test_the_imports_of_all_packages_are_read():
    importers = {each.importer.partition(".")[0] for each in IMPORTS}
    assert importers == set(way_in.PACKAGES)
    assert len(IMPORTS) > 500


@pytest.mark.parametrize("package", way_in.PACKAGES)
def test_a_package_has_no_import_cycle_even_under_type_checking(package):
    assert way_in.find_cycles(IMPORTS, package) == []


def test_no_file_imports_a_higher_layer():
    assert [each for each in IMPORTS if way_in.climbs(each)] == []


def test_every_file_has_a_layer():
    modules = {module for each in IMPORTS for module in (each.importer, each.imported)}
    assert [module for module in sorted(modules) if "." in module and way_in.layer(module) is None] == []


def test_builtin_rewards_do_not_import_feedback():
    builtin = [each for each in IMPORTS if each.importer.startswith("tdmr1_rewards.builtin")]
    assert [each for each in builtin if each.imported.startswith("tdmr1_rewards.feedback")] == []


def test_a_cycle_and_an_upward_import_are_found():
    one = way_in.Import("tdmr1_core.stages.a", "tdmr1_core.runs.b", typing_only=True)
    back = way_in.Import("tdmr1_core.runs.b", "tdmr1_core.stages.a", typing_only=False)
    assert way_in.find_cycles([one, back], "tdmr1_core") == [{"tdmr1_core.stages.a", "tdmr1_core.runs.b"}]
    assert [way_in.climbs(each) for each in (one, back)] == [True, False]


def test_importing_rewards_needs_neither_numpy_nor_torch():
    code = "import sys, tdmr1_rewards; print(sorted({'numpy', 'torch', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
