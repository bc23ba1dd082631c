"""Where a finished gate is sent, after its decision is written and its exit code settled.

``mlflow_target`` and ``webhook_payload`` say where, ``mlflow_content`` and ``items_table`` what. ``outbox`` keeps it
until it has arrived. ``sender_process`` runs ``mlflow``, ``registry`` or ``webhook`` in a process of its own that
cannot hold the gate up. Nothing here can change a verdict.
"""
