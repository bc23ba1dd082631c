"""From text to a score for each item. Pure: no IO, no clock, no random numbers."""
