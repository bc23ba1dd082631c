"""Processes that gate and guard start: the keeper behind which they run, their log and end, containers."""
