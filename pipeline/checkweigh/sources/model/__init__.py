"""A model directory: its files, weights derived from a source, and how its chat template renders."""
