"""Rewards that fail in every possible way, in this process and in others."""

import os
import sys
import time
from pathlib import Path

from tdmr1_rewards.api import RewardResult
from tdmr1_rewards.errors import Tdmr1Error


class Faulty:
    """The first word of a batch's first prompt selects the method `do_WORD`, which gets the rest of the prompt.

    If there is no such method, the score of an image is its first pixel. `close` writes to the file that the
    environment variable NOTES names.
    """

    def __init__(self):
        self.device = None

    def setup(self, device):
        self.device = device

    def __call__(self, batch):
        order, _, argument = batch.prompts[0].partition(" ")
        answer = getattr(self, f"do_{order}", self.score)(batch, argument)
        return RewardResult(answer) if isinstance(answer, list) else answer

    def close(self):
        if notes := os.environ.get("NOTES"):
            Path(notes).write_text("closed")

    def score(self, batch, _):
        return [float(image[0, 0, 0]) for image in batch.images]

    def do_raise(self, batch, argument):
        raise ValueError(f"no such\nword {argument}".rstrip())

    def do_hint(self, batch, argument):
        raise Tdmr1Error("the lamp is out", "light it")

    def do_hang(self, batch, argument):
        time.sleep(float(argument or 60))
        return self.score(batch, "")

    def do_nan(self, batch, argument):
        return [float("nan")] * len(batch)

    def do_inf(self, batch, argument):
        return [float("-inf")] * len(batch)

    def do_text(self, batch, argument):
        return ["0.5"] * len(batch)

    def do_huge(self, batch, argument):
        return [10**400] * len(batch)

    def do_short(self, batch, argument):
        return [1.0] * (len(batch) - 1)

    def do_type(self, batch, argument):
        return {"scores": [1.0]}

    def do_exit(self, batch, argument):
        sys.exit(3)

    def do_die(self, batch, argument):
        print("last words before the end", file=sys.stderr, flush=True)
        os._exit(7)

    def do_print(self, batch, argument):
        for _ in range(200):
            print("x" * 5000)
            print("y" * 5000, file=sys.stderr)
        os.write(1, b"raw\n")
        assert sys.stdin.read() == "", "the protocol's stdin is not for rewards"
        return self.score(batch, "")

    def do_details(self, batch, argument):
        import numpy as np

        return RewardResult([None] * len(batch), [{"boxes": np.ones((1, 2)), "device": self.device}] * len(batch))

    def do_whoami(self, batch, argument):
        return RewardResult([1.0] * len(batch), [{"pid": os.getpid(), "device": self.device}] * len(batch))

    def do_fail(self, batch, argument):
        """The file named by the argument holds the number of calls that still fail. Each call decreases it."""
        path = Path(argument)
        left = int(path.read_text())
        path.write_text(str(left - 1))
        if left:
            raise OSError(f"{left} to go")
        return self.score(batch, "")


class Stuck(Faulty):
    """Its `setup` fails."""

    def setup(self, device):
        raise OSError("no weights")


def broken():
    """A factory that fails."""
    raise KeyError("weights")


class Remembering:
    """Scores each image by the number of calls so far, which is its state."""

    calls = 0

    def __call__(self, batch):
        self.calls += 1
        return RewardResult([self.calls] * len(batch))

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Unspeakable(Remembering):
    """Its state contains a set, which JSON cannot represent."""

    def state_dict(self):
        return {"calls": {self.calls}}
