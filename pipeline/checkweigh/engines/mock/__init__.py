"""A mock of an inference server: OpenAI-compatible, queueing, batching, and failing on demand. It holds no model."""
