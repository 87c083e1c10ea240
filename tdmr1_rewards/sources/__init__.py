"""Finds and builds rewards that are registered, in a file or module, or on a server."""
