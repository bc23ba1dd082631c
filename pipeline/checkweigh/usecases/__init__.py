"""Use cases: the only place where the pure core meets IO."""
