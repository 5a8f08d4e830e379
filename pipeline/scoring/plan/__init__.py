"""The listing of a run, frozen into shards before anything is scored. A plan never changes once it is written."""
