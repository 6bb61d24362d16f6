"""The exercises of docs/adding.md, done as it says: trained, files counted, refused with one left out.

Each is applied to a copy of t5like and run in a process of its own (tests/forked.py).
"""
import json
import re

import pytest

from tests import guide
from tests.test_house import unread_keys

TRAIN = '''
import json, pathlib, sys
import jax
import t5like
from t5like.training import loop
from tests import tiny
folder = pathlib.Path(sys.argv[1])
assert pathlib.Path(t5like.__file__).is_relative_to(pathlib.Path.cwd())
for name, sections in json.loads(sys.argv[2]).items():
  c = tiny.config(folder, **dict(dict(evaluate=dict(every=0)), **sections))
  loop.train(c, folder / name, 'test', jax.devices()[:1])
'''


def train(checkout, folder, **runs):
  """{run: its losses, learning rates and gradient norms} of short runs, whose sections of a config are given."""
  folder.mkdir()
  done = guide.run(checkout, TRAIN, str(folder), json.dumps(runs))
  assert done.returncode == 0, done.stderr[-3000:]
  lines = {name: (folder / name / 'metrics.jsonl').read_text().splitlines() for name in runs}
  return {name: [line for line in map(json.loads, text) if 'loss' in line] for name, text in lines.items()}


def refusal(checkout, folder, **sections):
  """The error with which a run is refused before its first step."""
  folder.mkdir()
  done = guide.run(checkout, TRAIN, str(folder), json.dumps(dict(run=sections)))
  assert done.returncode != 0, 'it trained'
  metrics = folder / 'run' / 'metrics.jsonl'
  assert not metrics.exists() or '"loss"' not in metrics.read_text()
  return re.findall(r'^[\w.]+(?:Error|Incomplete): .*', done.stderr, re.M)[-1]


def losses(lines):
  return [line['loss'] for line in lines]


# --- Attention in chunks ----------------------------------------------------------------------------

CHUNK = 'A key of the model'
SHORT = dict(model=dict(chunk=4), steps=3)
REACH = '''
import dataclasses
import jax
import jax.numpy as jnp
import numpy as np
from t5like import sharding
from t5like.config import files
from t5like.errors import ConfigError
from t5like.huggingface import model_config
from t5like.model import attention_choice, attention_kernels, flops, transformer
from t5like.objectives.spec import Lengths
from tests import tiny

C, T = 4, 16
for position in ('rope', 'relative'):
  c = dataclasses.replace(tiny.MODEL, chunk=C, num_layers=2, position=position)
  with jax.set_mesh(sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])):
    model = transformer.build(c)
    params = jax.jit(model.init)(jax.random.key(0))
    ids = np.random.default_rng(0).integers(3, 60, (1, T)).astype(np.int32)
    rows = dict(positions=np.arange(T, dtype=np.int32)[None], segments=np.ones((1, T), np.int32))
    apply = jax.jit(lambda params, ids: model.apply(params, dict(rows, inputs=ids)))
    full, other = apply(params, ids), ids.copy()
    other[0, 0] += 1
    changed = np.abs(np.asarray(apply(params, other) - full))[0].max(-1) > 0
    assert changed.tolist() == [t < C for t in range(T)], changed
    cache = model.cache(params, dict(rows, inputs=ids), T)
    extend = jax.jit(lambda params, batch, keys, cache, at: model.extend(params, batch, keys, cache, at))
    for t in range(T):
      one = {name: x[:, t:t + 1] for name, x in dict(rows, inputs=ids).items()}
      keys = dict(rows, segments=np.where(np.arange(T) <= t, 1, 0).astype(np.int32)[None])
      logits, cache = extend(params, one, keys, cache, t)
      np.testing.assert_allclose(logits[:, 0], full[:, t], atol=1e-5)
    lengths = Lengths(T, 0, T)
    without = transformer.build(dataclasses.replace(c, chunk=0))
    assert flops.per_row(model, lengths) == flops.per_row(without, lengths)
for platform in ('tpu', 'gpu'):
  for bias in (False, True):
    spec = attention_kernels.spec_of(c, True, T, T, bias=bias)
    assert attention_choice.choose_kernel('auto', platform, spec) == ('xla', 'only it implements chunk here')
try:
  model_config.family_of(dict(vars(dataclasses.replace(tiny.MODEL, chunk=C))))
  raise AssertionError('it was exported')
except ConfigError as error:
  assert 'model.chunk=4, which would have to be 0' in str(error), error
try:
  tiny.config(__import__('pathlib').Path('.'), model=dict(chunk=4, name='encoder'), vocabulary=dict(sentinels=2),
              objective=dict(name='masked_lm'))
  raise AssertionError('an encoder has no chunks')
except ConfigError as error:
  assert 'model.chunk=4: an encoder sees all of its tokens' in str(error), error
'''


def test_chunks_are_six_files(tmp_path):
  assert len(guide.files(CHUNK)) == 6
  checkout = guide.changed(tmp_path, CHUNK)
  done = guide.run(checkout, REACH)
  assert done.returncode == 0, done.stderr[-3000:]
  validated = dict(SHORT, evaluate=dict(every=2))
  runs = train(checkout, tmp_path / 'runs', full=dict(steps=3), wide=dict(model=dict(chunk=32), steps=3),
               short=validated)
  assert losses(runs['wide']) == pytest.approx(losses(runs['full']), abs=1e-5)
  assert losses(runs['short']) != pytest.approx(losses(runs['full']), abs=1e-3)
  assert unread_keys(checkout) == []


@pytest.mark.parametrize('file, words', [
    ('t5like/config/base.py', 'model.chunk has a rule in t5like/config/rules.py, but is no key of'),
    ('t5like/config/rules.py', 'model.chunk is a number in t5like/config/base.py, but RANGES'),
    ('t5like/model/config.py', 'model.chunk is a key of t5like/config/base.py, but no field of ModelConfig'),
    ('t5like/model/flops.py', 'model.chunk=4: t5like/model/flops.py does not know what this changes')])
def test_chunks_with_one_file_left_out_is_refused(file, words, tmp_path):
  checkout = guide.changed(tmp_path, CHUNK, without=[file])
  assert words in refusal(checkout, tmp_path / 'runs', **SHORT)


@pytest.mark.parametrize('lines, words', [
    ('chunk: int = 0  # positions', "MASKS has 'chunk', which is no feature of AttentionSpec"),
    ('MASKS', 'attention with chunk=4: no kernel of t5like/model/attention_kernels.py')])
def test_chunks_with_a_part_of_attention_left_out_is_refused(lines, words, tmp_path):
  checkout = guide.changed(tmp_path, CHUNK, without_lines=lines)
  assert words in refusal(checkout, tmp_path / 'runs', **SHORT)


@pytest.mark.parametrize('left_out', [dict(without=['t5like/model/attention_kernels.py']),
                                      dict(without_lines='c.chunk if causal')], ids=['file', 'reader'])
def test_chunks_that_nothing_reads_fails_the_rules_of_the_house(left_out, tmp_path):
  assert unread_keys(guide.changed(tmp_path, CHUNK, **left_out)) == ['chunk']


# --- A schedule -------------------------------------------------------------------------------------

SCHEDULE = dict(schedule=dict(name='wsd_root', warmup_steps=0, decay_fraction=0.5), steps=8,
                optimizer=dict(learning_rate=1.0e-2))


def test_a_schedule_is_one_file(tmp_path):
  assert guide.files('A schedule') == ['t5like/rate_schedules.py']
  checkout = guide.changed(tmp_path, 'A schedule')
  (lines,) = train(checkout, tmp_path / 'runs', run=SCHEDULE).values()
  expected = [1e-2] * 5 + [1e-2 * (1 - (k / 4) ** 0.5) for k in (1, 2, 3)]
  assert [line['learning_rate'] for line in lines] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('old, new, words', [
    ('    wsd_root=Schedule(_stable_then_root, ends_in_decay=True),\n', '', "schedule.name='wsd_root': There is"),
    ('_stable_then_root, ends_in_decay=True', '_stable_then_root', 'reads span.decay, but its entry of SCHEDULES'),
    ('Schedule(_stable_then_root, ', 'Schedule(', "missing 1 required positional argument: 'shape'")])
def test_a_schedule_with_a_part_left_out_is_refused(old, new, words, tmp_path):
  checkout = guide.changed(tmp_path, 'A schedule')
  file = checkout / 't5like' / 'rate_schedules.py'
  assert file.read_text().count(old) == 1
  file.write_text(file.read_text().replace(old, new))
  assert words in refusal(checkout, tmp_path / 'runs', **SCHEDULE)


# --- An optimizer -----------------------------------------------------------------------------------

OPTIMIZER = dict(optimizer=dict(name='sign_of_mean', learning_rate=1e-3, extra=dict(b1=0.5)), steps=6)


def test_an_optimizer_is_two_files(tmp_path):
  assert len(guide.files('An optimizer')) == 2
  checkout = guide.changed(tmp_path, 'An optimizer')
  (lines,) = train(checkout, tmp_path / 'runs', run=OPTIMIZER).values()
  assert losses(lines)[-1] < losses(lines)[0]


@pytest.mark.parametrize('file, words', [
    ('t5like/config/optimizer_rules.py', "optimizer.name='sign_of_mean': there is no such optimizer"),
    ('t5like/optim/optimizers.py', "optimizer.name='sign_of_mean' is in t5like/config/optimizer_rules.py, but")])
def test_an_optimizer_with_one_file_left_out_is_refused(file, words, tmp_path):
  checkout = guide.changed(tmp_path, 'An optimizer', without=[file])
  assert words in refusal(checkout, tmp_path / 'runs', **OPTIMIZER)


@pytest.mark.parametrize('arguments, words', [
    ('b1 b9', "'sign_of_mean' takes b9, of which ARGUMENTS"),
    ('b1 momentum', "'sign_of_mean' takes momentum by t5like/config/optimizer_rules.py, but the function takes")])
def test_arguments_of_an_optimizer_that_nothing_takes_are_errors(arguments, words, tmp_path):
  checkout = guide.changed(tmp_path, 'An optimizer')
  file = checkout / 't5like' / 'config' / 'optimizer_rules.py'
  file.write_text(file.read_text().replace("sign_of_mean='b1 weight_decay'", f"sign_of_mean='{arguments}'"))
  assert words in refusal(checkout, tmp_path / 'runs', **OPTIMIZER)


# --- An architecture --------------------------------------------------------------------------------

ARCHITECTURE = 'An architecture'
LOOPED = dict(model=dict(name='looped'), steps=6)
DECODES = """
import dataclasses, pathlib
import jax
import numpy as np
from t5like import sharding
from t5like.errors import ConfigError
from t5like.huggingface import model_config
from t5like.model import flops, transformer
from t5like.objectives import table
from t5like.objectives.spec import Lengths
from tests import tiny

T = 8
assert table.trains('looped') == table.trains('decoder') != []
c = dataclasses.replace(tiny.MODEL, name='looped', num_layers=2)
with jax.set_mesh(sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])):
  model, deep = transformer.build(c), transformer.build(dataclasses.replace(c, name='decoder', num_layers=4))
  params = jax.jit(model.init)(jax.random.key(0))
  ids = np.random.default_rng(0).integers(3, 60, (1, T)).astype(np.int32)
  rows = dict(inputs=ids, positions=np.arange(T, dtype=np.int32)[None], segments=np.ones((1, T), np.int32))
  full = jax.jit(model.apply)(params, rows)
  cache = model.cache(params, rows, T)
  extend = jax.jit(lambda params, batch, keys, cache, at: model.extend(params, batch, keys, cache, at))
  for t in range(T):
    keys = dict(rows, segments=np.where(np.arange(T) <= t, 1, 0).astype(np.int32)[None])
    logits, cache = extend(params, {name: x[:, t:t + 1] for name, x in rows.items()}, keys, cache, t)
    np.testing.assert_allclose(logits[:, 0], full[:, t], atol=1e-5)
  assert flops.per_row(model, Lengths(T, 0, T)) == flops.per_row(deep, Lengths(T, 0, T))
try:
  model_config.family_of(vars(c))
  raise AssertionError('it was exported')
except ConfigError as error:
  assert "model.name='looped', which would have to be 'decoder'" in str(error), error
for objective in ('prefix_lm', 'span_corruption', 'ul2'):
  tiny.config(pathlib.Path('.'), model=dict(name='looped', vocab_size=384), data=dict(seq_len=128),
              vocabulary=dict(sentinels=32), objective=dict(name=objective))
"""


def test_an_architecture_is_three_files(tmp_path):
  assert len(guide.files(ARCHITECTURE)) == 3
  checkout = guide.changed(tmp_path, ARCHITECTURE)
  done = guide.run(checkout, DECODES)
  assert done.returncode == 0, done.stderr[-3000:]
  shown = dict(sample=dict(prompts=['the '], tokens=8), evaluate=dict(every=4))
  runs = train(checkout, tmp_path / 'runs', looped=dict(LOOPED, **shown), decoder=dict(steps=6))
  assert losses(runs['looped'])[-1] < losses(runs['looped'])[0]
  assert losses(runs['looped']) != losses(runs['decoder'])


@pytest.mark.parametrize('file, words', [
    ('t5like/choices.py', "model.name='looped' is implemented, but it is no choice in t5like/choices.py"),
    ('t5like/model/transformer.py', "model.name='looped' is a choice in t5like/choices.py, but nothing implements it"),
    ('t5like/model/flops.py', "model.name='looped' is a choice in t5like/choices.py, but nothing implements it")])
def test_an_architecture_with_one_file_left_out_is_refused(file, words, tmp_path):
  checkout = guide.changed(tmp_path, ARCHITECTURE, without=[file])
  assert words in refusal(checkout, tmp_path / 'runs', **LOOPED)


# --- A periodic action ------------------------------------------------------------------------------

ACTION = dict(log=dict(near_zero_every=2), steps=4)


def test_a_periodic_action_is_three_files(tmp_path):
  assert len(guide.files('A periodic action')) == 3
  checkout = guide.changed(tmp_path, 'A periodic action')
  train(checkout, tmp_path / 'runs', run=ACTION)
  lines = map(json.loads, (tmp_path / 'runs' / 'run' / 'metrics.jsonl').read_text().splitlines())
  shares = {line['step']: line['near_zero'] for line in lines if 'near_zero' in line}
  assert list(shares) == [2, 4] and all(0 <= share < 0.1 for share in shares.values())


@pytest.mark.parametrize('file, words', [
    ('t5like/config/base.py', 'log.near_zero_every has a rule in t5like/config/rules.py, but is no key'),
    ('t5like/config/rules.py', 'log.near_zero_every is a number in t5like/config/base.py, but RANGES')])
def test_a_periodic_action_with_one_file_left_out_is_refused(file, words, tmp_path):
  checkout = guide.changed(tmp_path, 'A periodic action', without=[file])
  assert words in refusal(checkout, tmp_path / 'runs', **ACTION)
