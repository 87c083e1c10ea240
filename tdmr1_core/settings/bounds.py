"""The upper bounds of numbers in settings and options.

They are far above every real use. A larger number is a typing error, or a run that no machine can complete, and is
refused before anything is loaded.
"""

MOST_ITERATIONS = 10**9
"""Iterations of a run, and iterations between two events."""
MOST_IMAGES = 2**20
"""Images of an iteration, an evaluation, a micro-batch or a call; also groups of images, and updates."""
MOST_STEPS = 1000
"""Sampling steps, and updates per iteration: the noise levels that the diffusion models are trained with."""
LONGEST_SIDE = 2**14
"""Pixels of an image in each direction. Every model has a lower limit of its own."""
MOST_WORKERS = 1024
"""Threads, processes, retries of a call, and people who judge an image."""
LONGEST_TAG = 64
"""Characters of a tag, and of a project, in trackers: the limit of Weights & Biases for tags."""
MOST_TAGS = 32
"""Tags of a run that the user names."""
LARGEST_RANK = 2**14
"""Rank of a LoRA; larger than the width of every supported network."""
LARGEST_SEED = 2**63 - 1
"""Seeds are signed 64-bit integers in torch and in databases."""
LARGEST_NUMBER = 1e6
"""Weights, scales and times in seconds (11 days)."""
