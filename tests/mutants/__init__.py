"""Tests that can fail: break one thing in the code at a time and see whether a test notices.

`make mutants [ROOM=lock] [LIMIT=60] [SEED=1]`. What survived, and why it was kept, stands in docs/testing.md.
"""
