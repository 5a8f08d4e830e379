"""Every metric once, its interval and what it cannot say; the report and the card made of them.

Metrics take arrays, not images: `outcomes` is where a split of a manifest becomes arrays, on Ray.
"""
