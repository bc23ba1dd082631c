"""Measurement: an engine and an evaluation set -> observations; two engines -> a paired run."""
