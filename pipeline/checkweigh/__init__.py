"""Checkweigh: the gate that decides whether a change to a served language model may ship."""

__version__ = "0.1.0"
