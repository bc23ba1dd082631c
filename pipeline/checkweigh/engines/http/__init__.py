"""Clients of an OpenAI-compatible server."""
