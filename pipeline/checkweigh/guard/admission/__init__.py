"""Who may use the KV cache now: cost, queues, saturation."""
