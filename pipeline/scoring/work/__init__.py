"""Shards to parts on Ray actors, whatever dies on the way.

A shard is done exactly when its part file exists.
"""
