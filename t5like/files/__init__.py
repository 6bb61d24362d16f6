"""Paths, guarded writes, JSON that is checked against a schema, copies of remote folders."""
