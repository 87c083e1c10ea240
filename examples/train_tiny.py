"""The training of `tdmr1 train`, with explicit calls of the stages. A starting point for experiments.

python examples/train_tiny.py --iterations 20
"""

from __future__ import annotations

import argparse

from tdmr1_core import Engine
from tdmr1_core.config_loading import read_preset, resolve


def main() -> None:
    """Train the embedded model and print the mean reward of every iteration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20)
    options = parser.parse_args()
    config = resolve([read_preset("tiny"), {"iterations": options.iterations, "rewards": [{"name": "object_count"}]}])
    engine = Engine.from_config(config)
    for iteration in range(config.iterations):
        groups = engine.next_groups()
        trajectory = engine.rollout(groups)
        scores = engine.score(trajectory)
        advantages = engine.advantages(scores)
        for step in range(config.timesteps.per_iteration):
            engine.update_fake(trajectory, step)
            for repeat in range(config.surrogate.updates):
                engine.update_surrogate(trajectory, advantages, step, repeat)
            engine.update_generator(trajectory, advantages, step)
        engine.iteration_index += 1
        print(f"iteration {iteration + 1}  mean reward {scores.total[scores.valid].mean():.3f}", flush=True)
    engine.close()


if __name__ == "__main__":
    main()
