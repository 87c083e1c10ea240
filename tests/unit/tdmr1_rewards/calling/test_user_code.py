"""The line of a reward's own code that an exception comes from."""

import importlib
import sys
import textwrap

import pytest
from support.event_loops import run_async

from tdmr1_rewards.calling.user_code import Place, attach_hint, attached_hint, describe_raised, place_hint

pytestmark = pytest.mark.unit


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(path, text)` writes a module below the current folder, which is on sys.path."""
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "lib" / "site-packages"):
        monkeypatch.syspath_prepend(folder)

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(textwrap.dedent(text))
        importlib.invalidate_caches()

    yield write
    for name in [name for name in sys.modules if name.startswith(("mine_", "installed_"))]:
        del sys.modules[name]


def raised_by(call, *arguments):
    with pytest.raises(BaseException) as caught:
        call(*arguments)
    return describe_raised(caught.value.with_traceback(caught.tb.tb_next))  # without the frame of this test


def test_the_innermost_frame_of_a_user_is_named_even_below_packages_and_the_standard_library(write):
    write("lib/site-packages/installed_a.py", "def apply(function, value):\n    return function(value)\n")
    write(
        "mine_a.py",
        """
        import json
        import installed_a

        def inner(text):
            return json.loads(text)

        def score(text):
            return installed_a.apply(inner, text)
        """,
    )
    raised = raised_by(importlib.import_module("mine_a").score, "{")
    assert raised.place == Place("mine_a.py", 6, "inner")
    assert str(raised).startswith("JSONDecodeError: ")
    assert str(raised).endswith(" (mine_a.py:6, in inner)")
    assert raised.values == {"error": raised.described, "file": "mine_a.py", "line": 6}
    assert raised.hint("correct it").startswith("look at mine_a.py, line 6; TDMR1_DEBUG=1 ")
    assert raised.hint("correct it").endswith("; correct it")


def test_a_comprehension_has_the_name_of_its_function_and_a_module_has_none(write):
    write("mine_b.py", "def score(images):\n    return sum(image.no for image in images)\n")
    assert raised_by(importlib.import_module("mine_b").score, [1]).place == Place("mine_b.py", 2, "score")
    write("mine_c.py", "\n1 / 0\n")
    assert str(raised_by(importlib.import_module, "mine_c")) == "ZeroDivisionError: division by zero (mine_c.py:2)"


def test_the_file_with_a_syntax_error_is_named_also_if_another_file_imports_it(write):
    write("mine_d.py", "import mine_e\n")
    write("mine_e.py", "\n\ndef f(:\n    pass\n")
    assert str(raised_by(importlib.import_module, "mine_d")) == "SyntaxError: invalid syntax (mine_e.py:3)"
    write("mine_f.py", "def f(text):\n    return compile(text, '<text>', 'exec')\n")
    assert raised_by(importlib.import_module("mine_f").f, "(").place == Place("mine_f.py", 2, "f")
    write("lib/site-packages/installed_d.py", "def f(:\n")
    write("mine_g.py", "x = 1\nimport installed_d\n")
    assert raised_by(importlib.import_module, "mine_g").place == Place("mine_g.py", 2)


def test_a_reward_in_an_installed_package_is_named_by_the_frame_of_its_package(write):
    write("lib/site-packages/installed_h/__init__.py", "from installed_h.b import call\n")
    write("lib/site-packages/installed_h/b.py", "import installed_i\ndef call():\n    installed_i.fail()\n")
    write("lib/site-packages/installed_i.py", "def fail():\n    raise OSError('no')\n")
    place = raised_by(importlib.import_module("installed_h").call).place
    assert place == Place("lib/site-packages/installed_h/b.py", 3, "call")


def test_a_torch_module_of_an_installed_package_is_named_by_its_own_frame(write):
    torch = pytest.importorskip("torch")
    text = "import torch\nclass Net(torch.nn.Module):\n    def forward(self, batch):\n        return batch.images\n"
    write("lib/site-packages/installed_j.py", text)
    place = raised_by(importlib.import_module("installed_j").Net(), torch.zeros(1)).place
    assert place == Place("lib/site-packages/installed_j.py", 4, "forward")


def test_a_reward_of_tdmr1_is_named_by_its_own_frame():
    from tdmr1_rewards.builtin.jpeg_size import JpegSize

    assert raised_by(JpegSize(None), None).place.file.endswith("jpeg_size.py")


def test_without_a_frame_of_a_reward_there_is_no_place_and_no_hint():
    raised = raised_by(int, "x")
    assert (raised.place, raised.values) == (None, {"error": raised.described})
    assert raised.hint("correct it") == "correct it"
    assert place_hint(raised.values) is None
    assert raised_by(importlib.import_module, "no_such_module").place is None


def test_the_only_exception_of_a_group_is_described(write):
    write(
        "mine_k.py",
        """
        import asyncio

        async def fail():
            raise KeyError("weights")

        async def score():
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        """,
    )
    raised = raised_by(run_async, importlib.import_module("mine_k").score())
    assert str(raised) == "KeyError: 'weights' (mine_k.py:5, in fail)"


def test_a_file_outside_the_current_folder_is_named_by_its_absolute_path(write, tmp_path, monkeypatch):
    write("mine_l.py", "def score():\n    raise OSError('no')\n")
    function = importlib.import_module("mine_l").score
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    assert raised_by(function).place.file == str(tmp_path / "mine_l.py")


def test_a_hint_is_attached_to_an_exception():
    error = OSError("no")
    assert attached_hint(error) is None
    attach_hint(error, "use another disk")
    assert attached_hint(error) == "use another disk"
