"""Parts to the documented output: checked id by id, compacted, counted again, `_SUCCESS` last."""
