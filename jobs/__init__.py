"""What `ray job submit` or the `leukoray` command runs: one thin file a job, a configuration model and a main."""
