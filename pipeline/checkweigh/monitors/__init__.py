"""Statistics of live traffic: what may be concluded about an engine from the requests it serves. Pure.

All monitors are always-valid (``stats.anytime``): they may be read after every request. Times are arguments.
"""
