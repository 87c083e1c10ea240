"""Looks into finished and unfinished runs: compares several, and explains what a surrogate learned."""
