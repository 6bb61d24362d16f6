"""The transformer. Flax stays in here."""
