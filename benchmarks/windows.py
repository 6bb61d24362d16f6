"""Predicted steps of models whose layers have windows, beside the same models with global layers alone.

    pip install -e '.[tpu]' && python benchmarks/windows.py [--only='gemma .* v5p']

Gemma 3's 1B (technical report, arXiv 2503.19786: 26 layers, five of them local to each global one, a window of 512) on
rows of 32,768, and ModernBERT base (arXiv 2412.13663: every third layer global, 64 tokens to each side) on rows of
8,192. Blocks are those that splash attention visits for one head of a row: 'window' in local layers, the other in
global ones. All figures are predicted by `preflight`, whose predictions of such models are compared with no run.
"""
import argparse
import dataclasses
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from t5like import config as config_lib  # noqa: E402
from t5like.config import base  # noqa: E402
from t5like.model.kernels import splash  # noqa: E402
from t5like.preflight import prediction, topologies  # noqa: E402 (run from anywhere)

GEMMA = dict(
    d_model=1152, num_layers=26, num_heads=4, num_kv_heads=1, head_dim=256, d_ff=6912, vocab_size=262_144,
    activation='geglu', block='sandwich', norm='rmsnorm_unit', embed_scale='sqrt_d_model', qk_norm='head',
    tie_embeddings=True, rope_theta=1e6, remat='full')
MODERNBERT = dict(
    name='encoder', d_model=768, num_layers=22, num_heads=12, d_ff=1152, vocab_size=50_368, activation='geglu_exact',
    block='bare_first', norm='layernorm', embed_norm=True, head='mlm_unbiased', tie_embeddings=True, rope_theta=160e3,
    remat='full')
LOCAL = dict(
    gemma=dict(layers=('local',) * 5 + ('global',), window=512, local_rope_theta=1e4),
    modernbert=dict(layers=('global', 'local', 'local'), window=65, local_rope_theta=1e4))


@dataclasses.dataclass(frozen=True)
class Row:
  name: str
  model: dict
  objective: str
  length: int
  topology: str
  batch: int


ROWS = (
    Row('gemma', GEMMA, 'causal', 32_768, 'v5e-64', 64),
    Row('gemma', GEMMA, 'causal', 32_768, 'v5p-128', 64),
    Row('gemma', GEMMA, 'causal', 32_768, 'v6e-64', 64),
    Row('modernbert', MODERNBERT, 'masked_lm', 8192, 'v5e-16', 64),
    Row('modernbert', MODERNBERT, 'masked_lm', 8192, 'v5p-32', 64),
    Row('modernbert', MODERNBERT, 'masked_lm', 8192, 'v6e-16', 64),
)


def config_of(row, changes):
  c = base()
  c.data.seq_len = row.length
  c.objective.name = row.objective
  c.vocabulary.update(name='sentencepiece', size=row.model['vocab_size'] - 1024, sentinels=1)
  c.model.update(row.model, **changes)
  c.batch_size = row.batch
  c.stop.tokens = 10 ** 12
  c.sample.prompts = ()
  config_lib.validate(c)
  return c


def blocks(row, windowed):
  """Pairs of blocks that one head of a row visits, and the size of a block."""
  causal = row.objective == 'causal'
  window = None
  if windowed:
    width = LOCAL[row.name]['window'] - 1
    window = (width, width)
  (reach,) = splash.reaches(causal, False, window, row.length).values()
  block, _, pairs = splash.visits(row.length, row.length, reach)
  return f'{pairs} of {block}'


def cells(row, changes):
  report = prediction.predict(config_of(row, changes), topologies.parse(row.topology))
  gib = report['hbm']['used'] / prediction.GIB
  if not report['fits']:
    return f'does not fit ({gib:.1f} GiB)', None
  step = 1e3 * report['step_seconds']
  kernels = 1e3 * report['times']['kernel']
  return f'{step:,.1f} ms, {kernels:,.1f} ms of it attention, {gib:.1f} GiB', step


def line(row):
  whole, step = cells(row, {})
  local, step_of_local = cells(row, LOCAL[row.name])
  ratio = f'{step / step_of_local:.2f}' if step and step_of_local else ''
  visited = f'{blocks(row, False)}; window: {blocks(row, True)}'
  return f'| {row.name} | {row.topology} | {row.length:,} | {visited} | {whole} | {local} | {ratio} |'


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--only', default='', help='a regular expression for rows: "name topology"')
  args = parser.parse_args()
  print('| model | topology | row | pairs of blocks visited | all layers global | local layers | ratio |')
  print('|---' * 7 + '|')
  for row in ROWS:
    if re.search(args.only, f'{row.name} {row.topology}'):
      print(line(row), flush=True)


if __name__ == '__main__':
  main()
