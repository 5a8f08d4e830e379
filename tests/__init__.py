"""Tests, by what they need: unit (nothing), integration (Ray, S3 server), system (processes killed), realdata."""
