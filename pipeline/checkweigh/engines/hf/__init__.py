"""transformers in the worker process: loading, scoring, generation, exact divergence."""
