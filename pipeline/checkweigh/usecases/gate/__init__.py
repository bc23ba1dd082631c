"""The gate: inputs, arms, looks, judgement, ledger, reports."""
