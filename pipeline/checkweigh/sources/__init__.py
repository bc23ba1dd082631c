"""What a manifest names: found, pinned and verified; evaluation sets; git."""
