"""Protocols of others beside our own interface: each a folder with its routes, which end in the same engine."""
