"""Score whole archives into Parquet: every image accounted for, exactly once.

    plan     the listing, frozen into shards of rows        shard file k
    worker   fetch, decode, predict one shard               part file k, written whole: exists = done
    output   Parquet made piece by piece, written whole
    commit   parts checked against shards, compacted        predictions/, quarantine/, run.json, _SUCCESS last

`driver` hands shards to Ray actors; `lock` keeps two runs off one output; `ledger` knows what earlier runs did.
"""
