"""The label of work on rows whose number only the data tells: what it is where experts get equal numbers of tokens.

Products of groups, and rows that travel to experts, have room for all that could come. preflight/ prices what comes if
the router is balanced, by this label in the path of their operations.
"""
import re

LABEL = re.compile(r'balanced_(\d+)_of_(\d+)')


def label(rows: int, slots: int) -> str:
  """For `jax.named_scope`: of so many slots, so many have rows."""
  return f'balanced_{rows}_of_{slots}'


def share(path: str) -> float:
  """The share of slots that have rows, by the path of an operation; 1 where it says nothing."""
  match = LABEL.search(path)
  if match is None:
    return 1.0
  rows, slots = match.groups()
  return int(rows) / int(slots)
