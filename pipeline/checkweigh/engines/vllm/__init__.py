"""A vLLM server as an engine: launch, identity, metrics, memory, and divergence from top log-probabilities."""
