"""The pure core: measurements and a policy in, a verdict out. No files, no clock, no randomness of its own."""
