"""Folders of runs and their checkpoints. Orbax stays in here."""
