"""The way of the data, in order: prompts, rollout, scoring, fake score, surrogate, generator."""
