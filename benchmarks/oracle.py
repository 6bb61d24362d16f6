"""Predicted steps beside published ones: how far `preflight` may be trusted, by generation of TPU.

    pip install -e '.[tpu]' && python benchmarks/oracle.py [--only=REGEX] [--results=FILE]

benchmarks/published_steps.json has steps that others have published, with their sources. Each that t5like can express
becomes a config of the same sizes, rows, layout and remat, is compiled by the TPU compiler and priced as `preflight`
does. The table has the published and the predicted seconds; rows that cannot be expressed are listed with the reason.
What is offloaded to the host there is kept on the device here, which costs memory and no time.

One number for each generation, by which its predictions are multiplied, is fitted on half of the layouts that were
published (the median of published / predicted), and the error is that on the other half.
"""
import argparse
import hashlib
import json
import pathlib
import re
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from t5like import config as config_lib  # noqa: E402
from t5like.config import base  # noqa: E402
from t5like.errors import Failure  # noqa: E402
from t5like.model import models  # noqa: E402
from t5like.preflight import prediction, topologies  # noqa: E402

PUBLISHED = ROOT / 'benchmarks' / 'published_steps.json'
INPUT = 'decoder_layer_input'
QKV = ('query_proj', 'key_proj', 'value_proj')
# What the published run saves for the backward pass, on the device or on the host -> model.remat.
SAVED = {
    frozenset({INPUT}): 'full',
    frozenset({INPUT, *QKV}): 'attention',
    frozenset({INPUT, 'context', *QKV}): 'attention',
    frozenset({INPUT, 'context', *QKV, 'qkv_proj'}): 'attention',
    frozenset({INPUT, *QKV, 'out_proj'}): 'middle',
}
REMATS = {
    'full': 'full',
    'full (default)': 'full',
    'gradient checkpointing on': 'full',
    'minimal': 'minimal',
    'dots saveable': 'minimal',
}
AXES = dict(ici_fsdp='fsdp', ici_fsdp_transpose='fsdp_outer', ici_tensor='tensor', ici_context='context',
            ici_data='data', ici_expert='expert', dcn_data='slice')
BLOCKS = ('gated_mlp', 'tied_embeddings', 'mlp_activation', 'moe_d_ff', 'shared_experts', 'active_parameters',
          'learned_positions', 'qk_norm')  # of `arch_extra`, those that are expressed
ACTIVATIONS = {'relu': 'relu', 'gelu': 'gelu_tanh', None: 'gelu_tanh'}
QUANTIZATIONS = dict(bf16='none', int8='int8', fp8='fp8')
OPTIMIZERS = {None: {}, 'adamw': {}, 'adamw (default)': {}, 'adam_pax': {}, 'AdamH': {},
              'adamw, first moment bfloat16': dict(mu_dtype='bfloat16')}
SAME_SIZE = 0.005  # largest relative difference of the number of parameters
SHAPES = {('v4', 192): '4x4x12'}  # of slices that have no name by their size


class Inexpressible(Exception):
  """Why a published run has no config."""


def remat_of(row):
  """model.remat."""
  text = row['remat']
  if text in REMATS:
    return REMATS[text]
  if text is None:
    raise Inexpressible('what it recomputes is not published')
  saved = set()
  for part in text.split('; '):
    kind, _, names = part.partition(': ')
    if kind in ('offload to host', 'keep on device'):
      saved.update(names.split(', '))
  name = SAVED.get(frozenset(saved))
  if name is None:
    raise Inexpressible(f'no model.remat saves what it does ({text})')
  return name


def mesh_of(row):
  """{axis: size} of config.mesh."""
  if not row['parallelism']:
    raise Inexpressible('its layout is not published')
  mesh = dict(fsdp=1)
  for name, size in row['parallelism'].items():
    if name not in AXES:
      raise Inexpressible(f'no axis of the mesh is {name}')
    mesh[AXES[name]] = mesh.get(AXES[name], 1) * size
  if mesh.get('fsdp_outer', 1) > 1 and mesh['fsdp'] == 1:
    mesh['fsdp'] = mesh.pop('fsdp_outer')
  return mesh


def topology_of(row):
  """The slices of a row, by name."""
  name = 'tpu7x' if row['tpu'] == '7x' else row['tpu']
  generation = topologies.GENERATIONS[name]
  slices = row['slices'] or 1
  chips = row['chips'] // slices
  size = chips
  if generation.counts_cores:
    size *= 2
  text = f'{row["tpu"]}-{size}'
  if (name, chips) in SHAPES:
    text = f'{row["tpu"]}:{SHAPES[name, chips]}'
  if slices > 1:
    text = f'{slices}x{text}'
  return topologies.parse(text)


def config_of(row):
  """The config of a published run."""
  unknown = [key for key in row['arch_extra'] or {} if key not in BLOCKS]
  if unknown:
    raise Inexpressible(f'its blocks have {", ".join(unknown)}')
  for key in ('layers', 'd_model', 'heads', 'head_dim', 'd_ff', 'vocab', 'seq_len', 'per_chip_batch', 'chips'):
    if not row[key]:
      raise Inexpressible(f'its {key} is not published')
  if row['optimizer'] not in OPTIMIZERS:
    raise Inexpressible(f'its optimizer is {row["optimizer"]}')
  extra = row['arch_extra'] or {}
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=row['seq_len'])
  c.vocabulary.size = row['vocab']
  activation = 'swiglu'
  if not extra.get('gated_mlp', True):
    activation = ACTIVATIONS[extra.get('mlp_activation')]
  c.model.update(
      vocab_size=row['vocab'],
      d_model=row['d_model'],
      num_layers=row['layers'],
      num_heads=row['heads'],
      num_kv_heads=row['kv_heads'] or row['heads'],
      head_dim=row['head_dim'],
      d_ff=row['d_ff'],
      activation=activation,
      tie_embeddings=bool(extra.get('tied_embeddings')),
      position='learned' if extra.get('learned_positions') else 'rope',
      max_positions=row['seq_len'],
      qk_norm='head' if extra.get('qk_norm') else 'none',
      remat=remat_of(row),
      quantization=QUANTIZATIONS[row['precision']],
  )
  if row['experts']:
    c.model.update(
        experts=row['experts'],
        experts_per_token=row['top_k'],
        expert_d_ff=extra.get('moe_d_ff') or row['d_ff'],
        shared_experts=extra.get('shared_experts') or 0,
    )
  c.mesh.update(mesh_of(row))
  c.batch_size = round(row['per_chip_batch'] * row['chips'])
  c.optimizer.extra = OPTIMIZERS[row['optimizer']]
  c.stop.tokens = 10 ** 12
  c.sample.prompts = ()
  config_lib.validate(c)
  count = models.sizes(config_lib.resolve(c))['parameters']
  published = row['parameters'] or count
  if abs(count / published - 1) > SAME_SIZE:
    raise Inexpressible(f'it has {published:,} parameters, and a model of its sizes here {count:,}')
  return c


def layout_of(row):
  """What rows of one layout have in common: the same run at another date is no other evidence."""
  keys = ('tpu', 'model', 'chips', 'slices', 'seq_len', 'per_chip_batch', 'precision', 'remat')
  return '/'.join(str(row[key]) for key in keys) + json.dumps(row['parallelism'], sort_keys=True, allow_nan=False)


def is_fitted(layout):
  """Whether a layout is in the half that constants are fitted on."""
  return hashlib.sha256(layout.encode()).digest()[0] % 2 == 0


def predicted(row):
  """A line of results: {id, tpu, kind, published, predicted, times} or {id, tpu, published, why}."""
  line = dict(id=row['id'], tpu=row['tpu'], published=row['step_seconds'], stated='step_seconds' not in row['derived'])
  try:
    c = config_of(row)
    report = prediction.predict(c, topology_of(row))
  except (Inexpressible, Failure) as error:
    return dict(line, why=' '.join(str(error).split())[:300])
  if not report['fits']:
    hbm = report['hbm']['used'] / prediction.GIB
    return dict(line, why=f'does not fit without what it offloads ({hbm:.1f} GiB)')
  kind = 'sparse' if row['experts'] else 'dense'
  if row['seq_len'] > 16_384:
    kind = 'long'
  if row['slices'] and row['slices'] > 1:
    kind += ', slices'
  return dict(line, kind=kind, predicted=report['step_seconds'], times=report['times'], remat=c.model.remat)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', default='', help='a regular expression for ids')
  parser.add_argument('--results', default='', help='a file of JSON lines, whose rows are not compiled again')
  flags = parser.parse_args(argv)
  done = {}
  if flags.results and pathlib.Path(flags.results).exists():
    for text in pathlib.Path(flags.results).read_text(encoding='utf-8').splitlines():
      line = json.loads(text)
      done[line['id']] = line
  lines = []
  for row in json.loads(PUBLISHED.read_text(encoding='utf-8')):
    if not re.search(flags.only, row['id']) or row['status'] == 'inconsistent' or not row['step_seconds']:
      continue
    line = done.get(row['id'])
    if line is None:
      line = predicted(row)
      if flags.results:
        with open(flags.results, 'a', encoding='utf-8') as f:
          f.write(json.dumps(line, allow_nan=False) + '\n')
    line['layout'] = layout_of(row)
    lines.append(line)
    print(shown(line), flush=True)
  summary(lines)


def shown(line):
  if 'why' in line:
    return f'| {line["id"]} | {line["tpu"]} | | {line["published"]:.3f} | | {line["why"]} |'
  error = line['predicted'] / line['published'] - 1
  return (f'| {line["id"]} | {line["tpu"]} | {line["kind"]} | {line["published"]:.3f} | {line["predicted"]:.3f} | '
          f'{error:+.1%} |')


def errors_of(lines, factor=1.0):
  """Relative errors of predictions times a factor."""
  return [factor * line['predicted'] / line['published'] - 1 for line in lines]


def summary(lines):
  """Errors by generation, as predicted and with the fitted factor."""
  print('\n| TPU | rows, of layouts | median error | largest | factor, of layouts | held out: rows | median of '
        'absolute errors | largest |\n|---|---|---|---|---|---|---|---|')
  lines = [line for line in lines if 'why' not in line]
  held_out_of_all = []
  for tpu in sorted({line['tpu'] for line in lines}):
    of_tpu = [line for line in lines if line['tpu'] == tpu]
    errors = errors_of(of_tpu)
    fitted = {}
    for line in of_tpu:
      if is_fitted(line['layout']):
        fitted.setdefault(line['layout'], []).append(line['published'] / line['predicted'])
    text = (f'| {tpu} | {len(of_tpu)}, {len({line["layout"] for line in of_tpu})} | {statistics.median(errors):+.1%} | '
            f'{max(errors, key=abs):+.1%} |')
    if not fitted:
      print(f'{text} | | | |')
      continue
    factor = statistics.median(map(statistics.median, fitted.values()))
    held_out = errors_of([line for line in of_tpu if not is_fitted(line['layout'])], factor)
    held_out_of_all += held_out
    print(f'{text} {factor:.3f}, {len(fitted)} | {len(held_out)} | {median_of_absolute(held_out):.1%} | '
          f'{max(held_out, key=abs, default=0):+.1%} |')
  if held_out_of_all:
    print(f'| all | {len(lines)} | | | | {len(held_out_of_all)} | {median_of_absolute(held_out_of_all):.1%} | '
          f'{max(held_out_of_all, key=abs):+.1%} |')


def median_of_absolute(errors):
  return statistics.median(map(abs, errors)) if errors else 0.0


if __name__ == '__main__':
  main()
