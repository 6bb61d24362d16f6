"""Every rule of configs: wrong values and what is said of them, right ones and what follows from them."""
import json
import re

import ml_collections
import pytest

from t5like import choices, config as C
from t5like.config import base, resolved, rules as R, values as V
from tests.config.test_config import TINY, message, tiny

# --- Wrong values: the overrides, then what the message must hold: key, value, remedy -------------

WRONG = [
    # keys
    ('model.num_layer=3', '--config.model.num_layer=3', 'Did you mean model.num_layers?'),
    ('--config.learning_rate=1', 'learning_rate=1: unknown', 'optimizer.learning_rate'),
    ('lr=1', 'lr=1: unknown', 'optimizer.learning_rate'),
    ('optimizer.lr=1', 'optimizer.lr=1', 'Did you mean optimizer.learning_rate?'),
    ('model.batch_size=3', 'model.batch_size=3', 'Did you mean batch_size?'),
    ('optimzer.name=sgd', 'optimzer.name=sgd', 'Did you mean optimizer.name?'),
    ('data.every=5', 'data.every=5', 'checkpoint.every or sample.every'),
    ('steps=100', 'steps=100', 'stop.tokens'),
    ('seed.x=1', 'seed.x=1', 'Did you mean seed?'),
    ('zzzzqq=1', 'zzzzqq=1: unknown key', 't5like/config/base.py'),
    ('mesh=2', 'mesh=2: mesh is a section',
     'mesh.slice, mesh.data, mesh.fsdp, mesh.fsdp_outer, mesh.expert, mesh.context, mesh.tensor'),
    ('seed', '--config.seed: no value', '--config.seed=VALUE'),
    # types
    ('model.num_layers=1.5', 'model.num_layers=1.5', 'whole number', '2.5M'),
    ('model.num_layers=True', 'model.num_layers=True', 'whole number'),
    ('stop.tokens=20G', 'stop.tokens=20G', '20B'),
    ('stop.tokens=1e99', 'stop.tokens=', 'below 2^63'),
    ('stop.tokens=0.0001K', 'stop.tokens=0.0001K', 'whole number'),
    ('data.document_mask=maybe', 'data.document_mask=maybe', 'true or false'),
    ('optimizer.b1=high', 'optimizer.b1=high', 'a finite number'),
    ('optimizer.b1=nan', 'optimizer.b1=nan', 'a finite number'),
    ('loss.z_loss=inf', 'loss.z_loss=inf', 'a finite number'),
    ('loss.z_loss=10s', 'loss.z_loss=10s', 'a finite number'),
    ('stop.wall_time=90m', 'stop.wall_time=90m', '90min'),
    ('watchdog.step=1e999', 'watchdog.step=1e999', '30s'),
    ('sample.prompts=[1, 2]', 'sample.prompts=[1, 2]', "('a', 'b')"),
    ('sample.prompts=[a, b]', 'sample.prompts=[a, b]', "('a', 'b')"),
    ('optimizer.extra=3', 'optimizer.extra=3', "{'momentum': 0.9}"),
    ('optimizer.extra={1: 2}', 'optimizer.extra={1: 2}', "{'momentum': 0.9}"),
    ('optimizer.extra.a-b=2', "optimizer.extra={'a-b': 2}", "{'momentum': 0.9}"),
    # choices
    ('model.activation=SwiGlu',
     "model.activation='SwiGlu'", "did you mean 'swiglu'", 'relu or swish'),
    ('schedule.name=cosin', "schedule.name='cosin'", "did you mean 'cosine'", 'wsd or constant'),
    ('model.dtype=float16', "model.dtype='float16'", 'bfloat16 or float32'),
    ('data.field=', "data.field=''", "default is 'text'"),
    # kinds of layers, rotary positions of longer rows
    ("model.layers=('globl',)", "model.layers=('globl',)", "did you mean 'global'"),
    ('model.layers=()', 'model.layers=()', "Use ('global',)."),
    ("model.layers=('local',)", "model.layers=('local',)", 'local layers need model.window', 'such as 512'),
    ('model.encoder_window=8', 'model.encoder_window=8', "belongs to model.name='encoder_decoder'"),
    ('model.encoder_embed=own_positions', "model.encoder_embed='own_positions'", "belongs to model.name='enc"),
    ('model.name=encoder_decoder objective.name=span_corruption model.encoder_embed=own_positions',
     "with model.position='rope' and model.embed_norm=False", "Use 'shared'."),
    ('model.window=8', 'model.window=8', 'belongs to local layers', "model.layers=('local',)"),
    ('model.local_rope_theta=1e4', 'model.local_rope_theta=10000.0', 'belongs to local layers'),
    ("model.layers=('global_nope',) model.position=learned", "model.layers=('global_nope',)", "model.position='rope'"),
    ('model.qkv_bias=True model.use_bias=True', 'model.qkv_bias=True', 'Use one of them.'),
    ('model.rope_scaling.name=lama3', "model.rope_scaling.name='lama3'", "Did you mean 'llama3'?"),
    ('model.rope_scaling.factor=2.0', 'model.rope_scaling.name=None', 'linear, dynamic, yarn, llama3 or longrope'),
    ('model.rope_scaling.name=linear', "'linear' needs factor"),
    ('model.rope_scaling.name=linear model.rope_scaling.factor=-1', 'model.rope_scaling.factor=-1', 'positive number'),
    ('model.rope_scaling.name=linear model.rope_scaling.factor=2 model.rope_scaling.b=2', 'model.rope_scaling.b=2',
     "'linear' has factor."),
    ("model.rope_scaling.name=linear model.rope_scaling.factor=2 model.position=learned", "model.position='rope'"),
    # ranges
    ('batch_size=0', 'batch_size=0', 'at least 1.'),
    ('data.workers=-1', 'data.workers=-1', 'at least 0.'),
    ('vocabulary.sentinels=-1', 'vocabulary.sentinels=-1', 'at least 0.'),
    ('model.dropout=1', 'model.dropout=1.0', 'at least 0 and below 1.'),
    ('loss.label_smoothing=-0.1', 'loss.label_smoothing=-0.1', 'at least 0 and below 1.'),
    ('optimizer.learning_rate=0', 'optimizer.learning_rate=0.0', 'above 0.'),
    ('schedule.final_scale=1.1', 'schedule.final_scale=1.1', 'at least 0 and at most 1.'),
    ('sample.top_p=0', 'sample.top_p=0.0', 'above 0 and at most 1.'),
    ('seed=5B', 'seed=5000000000', 'below 4294967296'),
    ('watchdog.step=0.000001', 'watchdog.step=1e-06', 'at least 1.'),
    ('watchdog.save=1e300', 'watchdog.save=1e+300', 'at most 1,000,000,000.'),
    ('model.lora_rank=1M', 'model.lora_rank=1000000', 'at most 65,536.'),
    ('model.lora_rank=193', 'model.lora_rank=193', "'q'", '192 x 192', 'at most 192'),
    ("model.lora_rank=100 model.num_kv_heads=1 model.lora_projections=('q', 'v')", 'lora_rank=100', "'v'", '192 x 64'),
    ('model.num_layers=1T', 'model.num_layers=1000000000000', 'at most 10,000.'),
    ('data.seq_len=1B', 'data.seq_len=1000000000', 'at most 16,777,216.'),
    ('allow_changed=optimzer.name', 'allow_changed', 'Did you mean optimizer.name?'),
    ('allow_changed=data,dta', 'dta'),
    # combinations
    ('stop.tokens=0', 'stop.tokens=0', '16 x 128', 'at least 2,048'),
    ('stop.tokens=2047', 'stop.tokens=2,047', 'at least 2,048'),
    ('microbatches=3', 'batch_size=16', 'microbatches = 3', '15 or 18'),
    ('mesh.data=3', 'batch_size=16', 'mesh.data x mesh.fsdp = 3', '15 or 18'),
    ('microbatches=4 mesh.data=2 mesh.fsdp=4', 'batch_size=16', '= 32', 'Use 32.'),
    ('mesh.data=-1', 'mesh.data=-1, mesh.fsdp=-1', 'only one', 'Give all others a number'),
    ('mesh.fsdp=0', 'mesh.fsdp=0', 'at least 1, or -1'),
    ('mesh.tensor=-2', 'mesh.tensor=-2', 'at least 1, or -1'),
    ('mesh.tensor=4 model.num_heads=6', 'mesh.tensor=4', 'model.num_heads=6', '2, 3 or 6'),
    ('mesh.tensor=3 model.num_kv_heads=2', 'mesh.tensor=3', 'model.num_kv_heads=2', '1 or 2'),
    ('mesh.tensor=6 model.d_ff=512', 'mesh.tensor=6', 'model.d_ff=512', '2, 4 or 8', 'd_ff=516'),
    ('mesh.fsdp=5 batch_size=20', 'mesh.fsdp=5', 'model.d_model=192', '3, 4 or 6'),
    ('model.num_heads=5', 'model.num_heads=5', 'd_model=192', '3, 4 or 6', 'model.head_dim'),
    ('model.num_heads=64', 'model.head_dim=3 (d_model / num_heads)', 'even', 'model.head_dim=4'),
    ('model.head_dim=33', 'model.head_dim=33', 'even', 'model.head_dim=34'),
    ('model.num_heads=6 model.num_kv_heads=4', 'model.num_kv_heads=4', 'num_heads=6', '2, 3 or 6'),
    ('model.num_heads=6 model.num_kv_heads=12', 'model.num_kv_heads=12', 'num_heads=6', '2, 3 or 6'),
    ('model.position=learned model.max_positions=64',
     'seq_len=128', 'holds 64', 'model.max_positions=128'),
    ('model.vocab_size=2000', 'model.vocab_size=2000', '2048 tokens', 'at least 2048'),
    ('vocabulary.name=bytes model.vocab_size=300', 'vocab_size=300', '359', '384'),
    ('vocabulary.size=300', 'vocabulary.size=300', 'sentinels=100', 'at least 360'),
    ('vocabulary.name=characters vocabulary.specials=no', 'data.document_mask=True',
     'vocabulary.specials=False', 'Set data.document_mask=False'),
    ('checkpoint.every=100 checkpoint.keep_every=250', 'keep_every=250', 'checkpoint.every=100', '300'),
    ("vocabulary.name=characters vocabulary.specials=False data.document_mask=False sample.prompts=('',)",
     'sample.prompts', 'specials=False', "('a',)"),
    ('loss.chunks=3', 'loss.chunks=3', '128 targets of a row', 'Use 1, 2 or 4'),
    ('data.validation_fraction=1', 'data.validation_fraction=1.0', 'above 0 and below 1'),
    ('data.validation=test', "data.validation='test'", 'python_docs', "'hash' or 'tail'"),
    ('data.source=pythondocs', "data.source='pythondocs'", "mean 'python_docs'", 'jsonl:GLOB'),
    ('data.source=text:', "data.source='text:'", 'write text:GLOB'),
    ('data.source=tfds', "data.source='tfds'", 'write tfds:NAME'),
    ('data.source=shakespeare:x', "data.source='shakespeare:x'", 'write shakespeare.'),
    ('data.source=markov:27', "data.source='markov:27'", '2 to 26'),
    ('data.source=copy:x', "data.source='copy:x'", '2 to 26', 'copy:8'),
    ('stop.target=nll', "stop.target='nll'", "'nll <= 1.5'", 'bits_per_byte'),
    ('stop.target=nl<=2', "stop.target='nl<=2'", "mean 'nll'", 'bits_per_byte'),
    ('stop.target=accuracy>2', 'no model can reach it', 'from 0 to 1'),
    ('stop.target=accuracy>1', 'no model can reach it'), ('stop.target=perplexity<=0.5', 'from 1 to inf'),
    ('stop.target=nll<0', 'no model can reach it'),
    ('stop.target=nll<=nan', "stop.target='nll<=nan'", "'nll <= 1.5'"),
    ('optimizer.decay_mask=(', "optimizer.decay_mask='('", 'regular expression', "(^|/)w$"),
    ('optimizer.extra.learning_rate=1',
     'optimizer.extra.learning_rate', 'set optimizer.learning_rate'),
]


def split(text):
  """'a=1 b.c=2' to two overrides; values may hold spaces."""
  return re.split(r' (?=[a-z_.]+=)', text)


@pytest.mark.parametrize('overrides,needles', [(w[0], w[1:]) for w in WRONG],
                         ids=[w[0] for w in WRONG])
def test_wrong_values_are_named_with_a_remedy(overrides, needles):
  said = message(C.load, TINY, split(overrides))
  assert all(needle in said for needle in needles), said
  assert '\n' not in said or 'problems:' in said


def test_several_problems_come_at_once():
  keys = 'seed batch_size data.workers data.shards stop.patience log.every loss.chunks'.split()
  said = message(C.load, TINY, [f'{key}=-1' for key in keys])
  assert 'has 7 problems:' in said and 'and 2 more' in said and said.count('\n') == 6


@pytest.mark.parametrize('section', ['more', *sorted(V.SECTIONS)])
def test_whole_sections_replaced(section):
  for value in (None, 3, {}, {'x': 1}, ml_collections.ConfigDict({'x': {'y': 1}})):
    c = tiny().unlock()
    c[section] = value
    assert section in message(C.validate, c)


# --- Right values ---------------------------------------------------------------------------------


@pytest.mark.parametrize('text,value', [
    ('stop.tokens=20B', 20 * 10**9), ('stop.tokens=2.5M', 2_500_000), ('stop.tokens=1_000k', 10**6),
    ('stop.tokens=1e6', 10**6), ('stop.tokens=1.5e+7', 15_000_000), ('stop.tokens=3 T', 3 * 10**12),
    ('stop.tokens=9_007_199_254_740_993', 2**53 + 1),  # not through a float
    ('stop.wall_time=45', 45.0), ('stop.wall_time=30s', 30.0), ('stop.wall_time=90min', 5400.0),
    ('watchdog.step=2h', 7200.0), ('watchdog.start=1.5d', 129600.0),
    ('optimizer.learning_rate=1e-3', 1e-3), ('loss.z_loss=0', 0.0),
    ('data.document_mask=No', False), ('model.scan_layers=0', False), ('model.use_bias=TRUE', True),
    ('sample.prompts=("a", "b")', ('a', 'b')), ("sample.prompts=['a']", ('a',)),
    ('sample.prompts=Once (upon', ('Once (upon',)), ('sample.prompts=', ('',)),
    ('sample.prompts=()', ()), ('config.seed=3', 3), ('--config.seed=3', 3),
    ('data.source=text:/a=b/*.txt', 'text:/a=b/*.txt'), ('data.source=markov:26', 'markov:26'),
    ('optimizer.clip_norm=0', 0.0), ('model.head_dim=32', 32)])
def test_overrides(text, value):
  key = text.partition('=')[0].removeprefix('--').removeprefix('config.')
  got = V.flatten(C.load(TINY, [text]))[key]
  assert got == value and type(got) is type(value)


@pytest.mark.parametrize('text,value', [
    ('nll <= 1.5', ('nll', '<=', 1.5)), ('accuracy>=0.6', ('accuracy', '>=', 0.6)),
    (' bits_per_byte < 1e0 ', ('bits_per_byte', '<', 1.0)),
    ('perplexity > 2', ('perplexity', '>', 2.0))])
def test_parse_target(text, value):
  assert C.parse_target(text) == value


# --- What follows from them, and the tables -------------------------------------------------------


def test_resolve_and_derived():
  m = C.resolve(tiny()).model
  assert (m.num_kv_heads, m.head_dim, m.d_ff, m.vocab_size) == (3, 64, 512, 2048)
  assert C.resolve(tiny(model__d_model=512, model__num_heads=8)).model.d_ff == 1408
  assert C.resolve(tiny(model__activation='gelu')).model.d_ff == 768
  assert C.resolve(tiny(model__d_ff=100, model__head_dim=8)).model.d_ff == 100
  for key, value, size in [('name', 'bytes', 384), ('name', 'characters', 0),
                           ('path', 'x.model', 0), ('size', 2049, 2176)]:
    assert C.resolve(tiny(**{f'vocabulary__{key}': value})).model.vocab_size == size
  c = tiny(schedule__name='wsd')
  assert C.derived(c) == dict(tokens_per_step=2048, steps=489, tokens=489 * 2048,
                              microbatch_size=16, warmup_share=50 / 489, decay_steps=98, targets_per_row=128)
  assert C.resolve(c) is not c and c.model.d_ff == 0


@pytest.mark.parametrize('overrides, phases, words', [
    ('stop.tokens=2M schedule.warmup_steps=978', (977, 0), ['warmup_steps=978', '977 steps', 'warms up for 977']),
    ('stop.tokens=2M schedule.warmup_steps=977', (977, 0), []),
    ('stop.tokens=2M schedule.name=wsd schedule.warmup_steps=900', (782, 195), ['warmup_steps=900', '782']),
    ('stop.tokens=2M schedule.name=wsd schedule.warmup_steps=100 schedule.decay_fraction=1', (100, 877),
     ['decay_fraction=1', 'takes 877']),
    ('stop.tokens=2048 schedule.name=wsd schedule.warmup_steps=100', (0, 1), ['warms up for 0']),
    ('stop.tokens=9000T schedule.name=wsd', (50, 878906250000), [])])
def test_what_is_longer_than_the_run_is_cut_with_a_warning(overrides, phases, words):
  """A shorter run needs one flag."""
  c = C.load(TINY, split(overrides))
  steps = C.derived(c)['steps']
  assert resolved.phases(c.schedule, steps) == phases
  said = ' '.join(C.warnings(c))
  assert all(word in said for word in words) and bool(words) == bool(said)


@pytest.mark.parametrize('overrides, key', [
    ('stop.patience=3', 'stop.patience=3'), ('stop.target=nll<1', 'stop.target'),
    ('stop.patience=3 evaluate.every=10', ''), ('seed=3', '')])
def test_targets_that_are_looked_at_only_at_the_end_get_a_warning(overrides, key):
  c = C.load(TINY, ['evaluate.every=0', *split(overrides)])
  said = ' '.join(C.warnings(c))
  assert key in said and bool(key) == ('validated at its end only' in said)


@pytest.mark.parametrize('name', ['int8', 'fp8'])
@pytest.mark.parametrize('objective', ['causal', 'unmeasured'])
def test_the_measured_loss_of_8_bits_is_stated(name, objective, monkeypatch):
  monkeypatch.setitem(choices.QUANTIZATIONS, name, choices.Quantization({'causal': (0.0123, 0.004)}))
  if objective == 'unmeasured':
    monkeypatch.setitem(choices.QUANTIZATIONS, name, choices.Quantization({}))
  said = ' '.join(C.warnings(C.load(TINY, [f'model.quantization={name}'])))
  words = '+0.0123 ± 0.0040 nats' if objective == 'causal' else "was never measured for objective.name='causal'"
  assert f"model.quantization='{name}'" in said and words in said


COUNTED_WITHOUT_END = '''seed params_expected data.max_documents data.max_bad_records data.max_document_tokens
  data.mixture_cap schedule.warmup_steps schedule.timescale stop.patience evaluate.every evaluate.batches
  evaluate.tasks_every evaluate.limit guard.compare_every checkpoint.every checkpoint.keep_every sample.every log.every
  log.histograms_every optimizer.learning_rate optimizer.eps optimizer.weight_decay optimizer.clip_norm
  optimizer.router_bias_rate model.router_balance model.router_z_loss loss.z_loss
  guard.spike_loss guard.spike_norm'''.split()


def test_every_number_has_bounds_but_those_that_count_without_end():
  bounded = {key for key, interval in R.RANGES.items() if 'inf' not in interval} | set(R.MOST)
  assert set(R.RANGES) - bounded == set(COUNTED_WITHOUT_END) - {'seed'}
  assert set(R.MOST) <= set(R.RANGES)
  for key, most in R.MOST.items():
    text = message(C.load, TINY, [f'{key}={most * 10}'])
    assert key in text and f'at most {most:,}.' in text


NO_NUMBERS = (None, 'x', float('nan'), float('inf'), -float('inf'), 10 ** 400, (), {}, True)


@pytest.mark.parametrize('key', [key for key, value in V.DEFAULTS.items() if type(value) in (int, float)])
def test_what_is_no_number_is_refused_in_files_and_in_what_a_run_keeps(key):
  section, _, name = key.rpartition('.')
  for value in NO_NUMBERS:
    c, kept = tiny().unlock(), json.loads(C.to_json(tiny()))
    if type(V.DEFAULTS[key]) is int or type(value) not in (int, bool):  # ml_collections makes floats of these
      (c[section] if section else c)[name] = value
      assert key in message(C.validate, c)
    (kept[section] if section else kept)[name] = value
    if type(V.DEFAULTS[key]) is int and type(value) is int:
      continue
    problem = message(C.from_json, json.dumps(kept))
    assert key in problem or 'has a number of 401 digits' in problem


@pytest.mark.parametrize('section', sorted(V.SECTIONS))
def test_a_section_that_is_none_is_refused_in_what_a_run_keeps(section):
  for value in (None, 3, [1]):
    kept = json.loads(C.to_json(tiny()))
    assert section in message(C.from_json, json.dumps(dict(kept, **{section: value})))


def test_tables_name_real_keys_and_accept_the_defaults():
  assert {*R.CHOICES, *R.RANGES, *V.DURATIONS} <= set(V.DEFAULTS)
  c = base()
  c.stop.tokens = '1M'
  assert 'stop.tokens' in message(C.validate, base())
  c.stop.tokens = 10**6
  C.validate(c)
  numbers = {k for k, v in V.DEFAULTS.items() if type(v) in (int, float)}
  others = {'reference.value', 'data.validation_fraction', 'stop.tokens'}
  axes = ('slice', 'data', 'fsdp', 'fsdp_outer', 'expert', 'context', 'tensor')
  assert numbers - set(R.RANGES) - others == {f'mesh.{axis}' for axis in axes}
