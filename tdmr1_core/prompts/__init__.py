"""Prompt sets, generated from templates and word lists, and prompt files. Nothing is downloaded."""
