"""`tdmr1 label` closes its rounds whenever it ends."""

import pytest
from support.feedback_server import draw_folder

from tdmr1_cli.commands import label
from tdmr1_cli.main import main
from tdmr1_rewards.feedback.store import FeedbackStore

pytestmark = pytest.mark.unit


def test_ctrl_c_before_the_page_is_served_closes_the_round(tmp_path, monkeypatch, capsys):
    def interrupted(page, *_):
        assert page.store.open_rounds()
        raise KeyboardInterrupt

    monkeypatch.setattr(label, "_print_address", interrupted)
    folder = draw_folder(tmp_path / "images", 2)
    assert main(["label", str(folder), "--no-open"]) == 0
    assert "0 answers (+0)" in capsys.readouterr().err
    store = FeedbackStore(folder / "feedback")
    assert store.open_rounds() == []
    store.close()
