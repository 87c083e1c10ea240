"""Reads documents from outside, and keeps secrets out of every text that is printed or written."""
