"""Strict YAML: a tree with line numbers, and documents checked all at once."""
