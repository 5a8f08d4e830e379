"""Bytes in and out: one `Store` for disk and S3, whole writes, ranges, listings, locks, Parquet files.

Every failure is a `types.StoreError` with one of the stable codes. Nothing here knows what the bytes mean.
"""
