"""The serving guard: limits, shedding, breaker, restart, routing, in front of one engine or two."""
