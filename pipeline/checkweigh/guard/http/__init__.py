"""Requests at the door and upstream: schema, keys, errors, streams."""
