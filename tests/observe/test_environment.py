"""What a run records of where it runs."""
import json
import subprocess

import jax

from t5like import sharding
from t5like.observe import environment, ledger
from tests import tiny
from tests.conftest import ROOT


def test_the_commit_is_that_of_git():
  asked = subprocess.run(['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True)
  assert environment.commit().rstrip('+') == asked.stdout.strip()


def test_no_commit_of_somebody_elses_repository(monkeypatch):
  monkeypatch.setattr(environment, 'ROOT', ROOT / 't5like')
  assert environment.commit.__wrapped__() == ''


def test_versions_and_devices():
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  facts = environment.describe(mesh)
  assert f'jax {jax.__version__}' in facts['versions'] and facts['devices'] == '1 x cpu'


def test_memory_grows_with_what_is_held():
  before = environment.memory()
  held = bytearray(300 << 20)
  held[::4096] = b'x' * len(held[::4096])
  assert environment.memory()['host_memory'] >= before['host_memory'] and before['host_memory'] > 0.05
  assert 'device_memory' not in before  # CPUs do not report it


def test_a_run_records_them(tmp_path):
  from t5like.training import loop
  config = tiny.config(tmp_path, steps=2)
  loop.train(config, str(tmp_path / 'run'), 'run')
  (attempt,) = ledger.account(ledger.read(tmp_path / 'run'))['attempts']
  assert attempt['devices'] == '8 x cpu' and 'jax ' in attempt['versions']
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert all(line['host_memory'] > 0.05 for line in lines if 'loss' in line)
