"""What a person reads of a finished run: text, a page, what to do about each quarantine code."""
