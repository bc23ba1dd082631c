"""Evaluation sets: loaded, mapped to items, split over files."""
