"""Calls one reward, in a thread of this process or in another process."""
