"""Engine processes: launch, warm-up, watchdog, restart."""
