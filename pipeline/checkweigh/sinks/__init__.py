"""Where a finished gate is sent, after its decision is written and its exit code settled.

``target`` says where, ``content`` and ``table`` what, ``outbox`` keeps it until it has arrived, ``child`` runs
``mlflow`` in a process of its own that cannot hold the gate up. Nothing here can change a verdict.
"""
