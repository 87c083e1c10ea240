"""The stages of one iteration, in this order: rollout, scoring, fake score, surrogate, generator."""
