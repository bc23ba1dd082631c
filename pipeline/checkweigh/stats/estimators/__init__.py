"""Estimators of paired effects: each gives Evidence, or the reason why there is none."""
