"""The library: the way of one image from source to calibrated probability, without command line or HTTP.

Each room may import those on the floors below it, never one beside or above it (a contract in pyproject.toml, held by
`make lint`). Read from the ground up, it is the way of an image:

    base                        errors and codes, words for quantities, Ray, this machine
    storage  images  samples    bytes in and out; bytes to pixels; synthetic smears
    sources  model              what lies where, as rows and bytes; networks, bundle, registry, the one predictor
    ingest   evaluation         class, subject and split of each image; every metric, its interval, the report
    training scoring            labelled rows to a published bundle; archives into Parquet

Above the library stand `serving` (base, storage, images and model are all it needs) and `jobs` on top.
"""

__version__ = "0.1.0"
