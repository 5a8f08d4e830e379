"""Who may ask, and how much: keys with names, their file, and limits that hold over all replicas.

A presented key meets digests only. Knows nothing of HTTP: `serving.desk` says it in HTTP's words.
"""
