"""`make soak`: minutes of mixed load and changes of the model on `leukoray serve`, and what it kept of its promises."""
