"""Tokens on disk to batches, in the same order whatever the number of hosts."""
