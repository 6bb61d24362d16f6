"""Which name is suggested for one that does not exist."""
import pytest

from t5like import nearest


@pytest.mark.parametrize('name, expected', [
    ('cosin', ['cosine']), ('COSINE', ['cosine']), ('Linear', ['linear']), ('nothing', []), ('', [])])
def test_nearest(name, expected):
  assert nearest.nearest(name, ('cosine', 'linear', 'rsqrt')) == expected


def test_names_keep_their_letters_and_the_nearest_is_first():
  assert nearest.nearest('titel', ('text', 'Title', 'Titles'), most=2) == ['Title', 'Titles']


def test_long_names_are_compared_in_time():
  assert nearest.nearest('a' * 10_000_000, ('text',)) == []


def test_suggestion():
  assert nearest.suggestion('fsdq', ('fsdp', 'tensor')) == "Did you mean 'fsdp'? "
  assert nearest.suggestion('fsdq', ('fsdp',), ' (did you mean {}?)') == ' (did you mean fsdp?)'
  assert nearest.suggestion('nothing', ('fsdp', 'tensor')) == ''
  assert nearest.suggestion('query', ('q', 'k')) == '' != nearest.suggestion('query', ('q', 'k'), close=0.3)
