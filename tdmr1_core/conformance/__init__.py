"""Tests that a model family follows the conventions of its pipeline, and tiny pipelines to run them on."""
