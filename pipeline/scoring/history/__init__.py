"""What earlier runs of an output did: so that a night reads only what is new, and says what is gone."""
