"""The order of the detections of a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tdmr1_rewards.builtin.detection.checkpoints import BoxDetector
from tdmr1_rewards.builtin.detection.detections import strongest

pytestmark = pytest.mark.unit


class FakeModel:
    """Knows dogs."""

    config = SimpleNamespace(id2label={0: "dog"})

    def __call__(self):
        return None


class FakeProcessor:
    """Returns dogs with the given confidences; dog i is at x = 10 * i."""

    def __init__(self, scores):
        self.scores = torch.tensor(scores)

    def __call__(self, images, return_tensors):
        return SimpleNamespace(to=lambda device: {})

    def post_process_object_detection(self, outputs, threshold, target_sizes):
        left = 10.0 * torch.arange(len(self.scores))
        boxes = torch.stack([left, 0 * left, left + 2, 0 * left + 2], dim=1)
        return [{"scores": self.scores, "labels": torch.zeros(len(left), dtype=torch.long), "boxes": boxes}]


def test_of_equal_confidences_the_last_comes_first():
    """As in GenEval's script. The colors and positions of the most confident objects are checked, so it matters."""
    processor = FakeProcessor([0.5, 0.9, 0.5, 0.9, 0.7])
    detector = BoxDetector(FakeModel(), processor, device="cpu", batch_size=1, floor=0.1)
    (found,) = detector.detect(np.zeros((1, 8, 8, 3), np.uint8), [["dog"]])
    assert [item.box[0] for item in found] == [30, 10, 40, 20, 0]
    assert [item.box[0] for item in strongest(found, threshold=0.3, limit=4)["dog"]] == [30, 10, 40, 20]
