"""A reward with a state, as the source of a module."""

COUNTING = '''
from tdmr1_rewards import RewardBatch, RewardResult

class Counting:
    """Rewards red and blue in turns, and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, batch: RewardBatch) -> RewardResult:
        self.calls += 1
        pixels = [image.resize((1, 1)).getpixel((0, 0)) for image in batch.images]
        return RewardResult(scores=[float(pixel[2 * (self.calls % 2)]) + self.calls for pixel in pixels])

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]
'''
