"""Score whole archives into Parquet: every image accounted for, exactly once.

    request     what the user asked for; `run` takes it from lock to `_SUCCESS`
    plan/       the listing, frozen into shards of rows         shard file k
    work/       fetch, decode, predict on Ray actors            part file k, written whole: exists = done
    commit/     parts checked against shards, compacted         predictions/, quarantine/, run.json, _SUCCESS last
    history/    what earlier runs of the same output did
    summary/    what a person reads of a finished run

`run_folder` holds the store of a run and of an output, and names their files; `record` is run.json, `schemas` the rows.
"""
