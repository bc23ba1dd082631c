"""An engine with knobs (bias, faults, latency) for tests and for trying the tool."""
