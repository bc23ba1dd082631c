"""Engines: what serves a model, behind one protocol."""
