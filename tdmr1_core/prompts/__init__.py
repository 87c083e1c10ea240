"""Prompts for models of real pictures, generated from templates and words: nothing is downloaded."""
