"""Verdicts and weights that can be proved later.

``keys`` reads keys, ``envelope`` signs and opens DSSE envelopes, ``statement`` says what of a decision is signed,
``rules`` are all reasons to refuse one, pure; ``weights`` is the OpenSSF model signature of a directory.
"""
