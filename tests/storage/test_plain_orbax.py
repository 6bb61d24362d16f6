"""Checkpoints are Orbax's: the programs of docs/finetune.md read them word for word, without t5like."""
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from t5like import config as config_lib
from t5like.model import models
from t5like.storage.checkpoint import Checkpoints
from t5like.training import loop
from tests import tiny
from tests.conftest import ROOT

PAGE = (ROOT / 'docs' / 'finetune.md').read_text()
PROGRAMS = [block for block in re.findall(r'^```python\n(.*?)^```', PAGE, re.M | re.S) if 'orbax' in block]
PATH = '/home/me/runs/decoder_tiny/checkpoints/489/params'
LISTED = '''
import jax
import numpy as np
for path, x in jax.tree_util.tree_leaves_with_path(params):
  name = '/'.join(key.key for key in path)
  print(name, type(x).__name__, *x.shape, x.dtype, np.float64(np.abs(np.asarray(x, np.float64)).sum()))
'''


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run on 8 devices that share its parameters, and these as they were saved: (checkpoint folder, {path: array})."""
  folder = tmp_path_factory.mktemp('orbax')
  c = tiny.config(folder, steps=2, mesh=dict(fsdp=8), model=dict(d_model=64), evaluate=dict(every=0))
  loop.train(c, str(folder / 'run'), 'run')
  with Checkpoints(folder / 'run') as checkpoints:
    [step] = checkpoints.steps
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {path: shape for path, (shape, _) in models.parameters(config_lib.resolve(c)).items()}
    abstract = {}
    for path, shape in shapes.items():
      *parents, last = path.split('/')
      tree = abstract
      for key in parents:
        tree = tree.setdefault(key, {})
      tree[last] = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
    params = checkpoints.params(step, abstract)
  found = {'/'.join(key.key for key in path): np.asarray(x)
           for path, x in jax.tree_util.tree_leaves_with_path(params)}
  return folder / 'run' / 'checkpoints' / str(step), found


@pytest.mark.parametrize('program, devices, kind', [(0, 8, 'ArrayImpl'), (1, 1, 'ndarray'), (1, 8, 'ndarray')])
def test_programs_of_the_page_read_a_checkpoint(run, tmp_path, program, devices, kind):
  checkpoint, saved = run
  assert len(PROGRAMS) == 2 and PATH in PROGRAMS[program] and 't5like' not in PROGRAMS[program]
  text = PROGRAMS[program].replace(PATH, f'{checkpoint}/params') + LISTED
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
         'PYTHONPATH': ''}
  done = subprocess.run([sys.executable, '-c', text], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                        env=env)
  assert done.returncode == 0, done.stderr[-2000:]
  lines = [line.split() for line in done.stdout.splitlines() if line.endswith(tuple('0123456789')) and '/' in line]
  assert {line[0] for line in lines} == set(saved)
  for name, found_kind, *shape, dtype, total in lines:
    assert found_kind == kind and tuple(map(int, shape)) == saved[name].shape and dtype == 'float32'
    assert float(total) == np.abs(saved[name].astype(np.float64)).sum()
