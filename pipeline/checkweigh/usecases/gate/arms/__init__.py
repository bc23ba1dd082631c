"""The arms of a gate: their engines, started and checked, and what was measured on them."""
