"""Sending finished gates to MLflow and to a webhook."""
