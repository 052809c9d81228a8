"""Differential privacy on the server: noise, accountant, ledger."""
