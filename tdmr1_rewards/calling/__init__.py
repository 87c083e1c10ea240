"""Calls one reward, in a thread or in a process of its own."""
