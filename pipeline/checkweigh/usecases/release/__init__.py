"""Moving a registry alias behind a pass; signing and admitting."""
