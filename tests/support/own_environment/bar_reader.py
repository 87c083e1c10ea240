"""A recognition network for easyocr that reads gray bars: the mean brightness of every eight columns is a character.

Its weights hold one brightness for each character: a bar gets the character whose brightness is nearest.
"""

import torch


class Model(torch.nn.Module):
    """Images (N, 1, H, W) of -1 to 1 to logits (N, W / 8, characters)."""

    def __init__(self, num_class, bar):
        super().__init__()
        self.bar = bar
        self.levels = torch.nn.Parameter(torch.zeros(num_class))

    def forward(self, image, text):
        bars = torch.nn.functional.avg_pool2d(image, (image.shape[2], self.bar))[:, 0, 0]  # (N, W / bar)
        return -200 * (bars.unsqueeze(-1) - self.levels) ** 2
