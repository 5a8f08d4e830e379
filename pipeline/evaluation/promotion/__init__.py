"""Whether a version may take the place of the best one: a `protocol`, its `criteria`, a `run` of them."""
