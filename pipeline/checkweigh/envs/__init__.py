"""Engine environments: locked, installed for each version of an engine, never into ours."""
