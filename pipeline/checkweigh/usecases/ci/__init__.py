"""A pull request: what it changes, the gates that needs, the comment."""
