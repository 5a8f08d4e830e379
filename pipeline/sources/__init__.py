"""What lies where, as one stream of rows, and the rows' bytes.

The only room that walks anything: folders, buckets, archives, tables and manifests. `rows` is the record that leaves
it, `listing` the way there, `fetch` the way from a row to its bytes.
"""
