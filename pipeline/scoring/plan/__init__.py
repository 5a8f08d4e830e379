"""The listing of a run, frozen into shards before anything is scored. A plan never changes once it is written.

`freeze` sorts what was listed by what `selection` says of it into `files`; `shards` are the unit of work.
"""
