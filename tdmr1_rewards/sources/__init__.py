"""Finds rewards: registered, from a file or a module, or on a server."""
