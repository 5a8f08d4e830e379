"""What the service does, as numbers for Prometheus: each replica counts by itself, one actor of the application knows
the counts of all, and whichever replica is asked answers with their sum. Knows nothing of HTTP or of the engine.
"""
