"""Frozen typed records: what the layers hand to each other, and what is written to disk."""
