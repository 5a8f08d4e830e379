"""Shards to parts on Ray actors, whatever dies on the way. A shard is done exactly when its part file exists.

`driver` hands shards to the actors of `crew`, each a `worker` of its own; `news` is what they tell of archives before
their end, `crashes` the search for an image that ends a process, `parts` what they left.
"""
