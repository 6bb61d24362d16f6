"""Folders and JSON files that nobody should trust, some hundred of them; python -m tests.faults has thousands."""
import random
import shutil
import time

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from t5like.errors import Failure
from t5like.huggingface import folder_tokenizers, model_folders
from tests.faults import hostile_files, hostile_folders
from tests.faults.test_faults import faults

SEEDS = st.integers(0, 2 ** 40)
ONE_BY_ONE = settings(max_examples=80, deadline=None, derandomize=True, database=None,
                      suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  return hostile_folders.originals(tmp_path_factory.mktemp('folders'))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('files')
  hostile_files.prepared(folder)
  hostile_files.written(folder)
  return folder


def test_folders(folders, tmp_path):
  refused = []

  @ONE_BY_ONE
  @given(SEEDS)
  def one(seed):
    rng = random.Random(seed)
    source = rng.choice(folders)
    copy = tmp_path / 'case' / source.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(source, copy)
    what, began = hostile_folders.damage(rng, copy), time.process_time()
    try:
      folder_tokenizers.find_tokenizer(copy, {})
      model_folders.read(copy)
    except Failure as error:
      refused.append(what)
      assert error.exit_code in (2, 3, 4) and 20 < len(str(error)) < 4000 and '\n' not in str(error), what
      assert time.process_time() - began < 2, what
  one()
  assert len(refused) > 25


def test_files(files, tmp_path):
  refused = []

  @ONE_BY_ONE
  @given(st.sampled_from(sorted(hostile_files.READERS)), SEEDS)
  def one(reader, seed):
    outcome = hostile_files.look_at(tmp_path / 'case', files, reader, seed)
    assert 'crashed' not in outcome, outcome
    assert outcome['seconds'] < 2 and outcome['megabytes'] < 500, outcome
    refused.append('refused' in outcome)
  one()
  assert 12 < sum(refused) < len(refused)


@pytest.mark.slow
def test_a_thousand_of_them():
  said = faults('--only=hostile', '--hostile=1000')
  assert 'folders 400' in said and 'files 600' in said
