"""The checks that users run: they hold here, and a broken promise is found."""
import re

import jax
import numpy as np
import pytest

from t5like import selftest, sharding
from t5like.errors import CheckpointError, ConfigError, NumericsError
from t5like.training import loop, replay
from tests import tiny


def test_checks_hold_and_broken_ones_are_found(monkeypatch):
  """Other ways to compute make no difference; another learning rate, and no layers at all, do."""
  monkeypatch.setitem(selftest.CHECKS, 'rate', selftest.Check('x', ['optimizer.learning_rate=0.0031'], selftest.LIMIT))
  monkeypatch.setitem(selftest.CHECKS, 'wrong', selftest.Check('x', ['model.num_layers=0'], selftest.LIMIT))
  holds, differs, ends = selftest.selftest(['scan', 'rate', 'wrong'], say=lambda _: None)
  (name, _, difference, limit, _, problem) = holds
  assert name == 'scan' and problem == '' and difference <= limit
  (_, _, difference, _, _, problem) = differs
  assert problem == 'FAILED' and difference > selftest.LIMIT
  assert re.match('FAILED: exit code 2: .*num_layers', ends[-1])


def test_texts_in_one_row_do_not_see_each_other(monkeypatch):
  assert selftest.packing() <= selftest.LIMIT
  from t5like.model import attention
  real = attention.Attention.__call__
  blind = lambda q: dict(q, segments=q['segments'] * 0 + 1)
  monkeypatch.setattr(attention.Attention, '__call__', lambda self, x, kv, query, keys, *rest: real(
      self, x, kv, blind(query), blind(keys), *rest))
  assert selftest.packing() > 1e-3


def test_an_unknown_check_is_refused():
  with pytest.raises(ConfigError, match='--only=scans: no such check. There are replay, resume'):
    selftest.selftest(['scans'])


@pytest.mark.slow
def test_all_checks_hold():
  found = selftest.selftest(say=lambda _: None)
  assert [name for name, *_ in found] == list(selftest.CHECKS)
  assert not [entry for entry in found if entry[-1]]


def test_steps_done_twice_are_the_same_and_a_fault_is_named(tmp_path, monkeypatch):
  c = tiny.config(tmp_path, steps=8, mesh=dict(fsdp=8))
  with pytest.raises(CheckpointError, match='does not have a checkpoint yet'):
    from t5like.storage import workdir
    workdir.write_config(tmp_path / 'none', c)
    replay.replay(tmp_path / 'none', 2)
  loop.train(c, tmp_path / 'run', 'test')
  before = {f: f.read_bytes() for f in (tmp_path / 'run').rglob('*') if f.is_file()}
  assert replay.replay(tmp_path / 'run', 2) > 40
  assert {f: f.read_bytes() for f in (tmp_path / 'run').rglob('*') if f.is_file()} == before
  real, calls = sharding.to_global, []

  def faulty(mesh, batch):
    calls.append(1)
    if len(calls) == 4:  # the second step of the second time
      batch = dict(batch, weights=batch['weights'] * np.float32(1 + 1e-6))
    return real(mesh, batch)
  monkeypatch.setattr(sharding, 'to_global', faulty)
  with pytest.raises(NumericsError, match=r'Step 10, done twice from the checkpoint of step 8, gave different bits in'):
    replay.replay(tmp_path / 'run', 2)
  assert jax.device_count() == 8


def test_problems_are_shown_as_they_are(capsys):
  outcome = selftest.Outcome('mesh', 'devices', None, 0, 1.0, 'FAILED: no file matches [/data/x]')
  selftest.show([outcome])
  assert '[/data/x]' in ''.join(capsys.readouterr().out.split('\n'))
