"""A vLLM server as an engine: command line, identity, memory, divergence from top log-probabilities."""
