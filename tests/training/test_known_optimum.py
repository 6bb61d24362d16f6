"""Models reach optima that are known exactly, and do not go below them."""
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from t5like import config as config_lib
from t5like.batches import pipeline
from t5like.decoding import trained_model
from t5like.prepared import opening
from t5like.sources import synthetic
from tests.conftest import ROOT


def run(name, tmp_path):
  """(validation metrics at the end of a config's run by the command line, the config)."""
  environment = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR')}
  done = subprocess.run(
      [sys.executable, ROOT / 'main.py', f'--config={ROOT}/configs/{name}', f'--workdir={tmp_path}/run',
       f'--config.data.directory={tmp_path}/prepared', '--config.sample.prompts=()'],
      env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  config = config_lib.load(f'{ROOT}/configs/{name}', [f'data.directory={tmp_path}/prepared'])
  return result['validation'], config


def test_markov_chain(tmp_path):
  result, _ = run('markov.py', tmp_path)
  entropy = synthetic.markov_entropy(8)
  assert entropy - 0.01 < result['nll'] < entropy + 0.02


def masked_optimum(config):
  """Nats per prediction of the true posterior of each masked letter, over the validation batches.

  A hidden Markov model: letters x follow the chain, and what the encoder reads is x itself with
  probability 0.85 + 0.015, the mask with 0.12, any of the V ids with 0.015 / V. Of a token that is to be
  predicted the reader knows that it was chosen: 0.1, 0.8 and 0.1 / V.
  """
  store = opening.open_data(config, say=lambda _: None)
  V, first, mask = store.vocabulary.size, 3, store.vocabulary.mask_id
  P = synthetic.markov_transitions(8)
  values, vectors = np.linalg.eig(P.T)
  start = np.real(vectors[:, np.argmax(np.real(values))])
  start /= start.sum()

  def emission(read, kept, masked, noise):  # [T, 8]: P(what is read | letter)
    e = np.full((len(read), 8), noise / V)
    e[read == mask] += masked
    letters = np.flatnonzero((read >= first) & (read < first + 8))
    e[letters, read[letters] - first] += kept
    return e
  nats = count = 0
  for _, batch in pipeline.evaluation_batches(store, config):
    for row in range(len(batch['inputs'])):
      read = batch['inputs'][row][batch['segments'][row] > 0]
      e = emission(read, 0.865, 0.12, 0.015)
      T = len(read)
      before, after = np.zeros((T, 8)), np.ones((T, 8))
      for t in range(T):  # P(x_t | what was read before t), up to a factor
        before[t] = start if t == 0 else (before[t - 1] * e[t - 1]) @ P
        before[t] /= before[t].sum()
      for t in range(T - 2, -1, -1):
        after[t] = P @ (after[t + 1] * e[t + 1])
        after[t] /= after[t].sum()
      there = batch['weights'][row] > 0
      for t, target in zip(batch['predict'][row][there], batch['targets'][row][there]):
        p = before[t] * after[t] * emission(read[t:t + 1], 0.1, 0.8, 0.1)[0]
        nats -= math.log(p[target - first] / p.sum()) if target >= first else 0
        count += 1
  return nats / count


@pytest.mark.slow
def test_masked_markov_chain(tmp_path):
  result, c = run('markov.py:masked', tmp_path)
  optimum = masked_optimum(c)
  assert optimum - 0.01 < result['nll'] < optimum + 0.03


@pytest.mark.slow
def test_spans_of_random_letters(tmp_path):
  result, _ = run('iid_span.py', tmp_path)
  optimum = (10 * math.log(16) + math.log(math.comb(9, 2))) / 14
  assert abs(optimum - 2.2364) < 1e-4
  assert optimum - 0.01 < result['nll'] < optimum + 0.03


@pytest.mark.slow
@pytest.mark.parametrize('task', ['copy', 'reverse'])
def test_copy_and_reverse(task, tmp_path):
  """At least 99 % of held-out strings come out exactly right, generated without the answer in sight."""
  _, c = run('seq2seq_copy.py' + (':reverse' if task == 'reverse' else ''), tmp_path)
  model = trained_model.load(tmp_path / 'run')
  examples = opening.open_data(c, say=lambda _: None).examples('validation')
  decode = model.vocabulary.decode
  inputs, targets = zip(*[[decode(t) for t in examples[i]] for i in range(min(400, len(examples)))])
  step = -1 if task == 'reverse' else 1
  assert len(inputs) >= 300 and all(t == i[::step] for i, t in zip(inputs, targets))
  answers = model.generate(list(inputs), tokens=20, temperature=0)
  right = np.mean([a == t for a, t in zip(answers, targets)])
  assert right >= 0.99
