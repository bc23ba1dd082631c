"""What scoring needs from outside: the ``evaluate`` library, and a sandbox for generated code."""
