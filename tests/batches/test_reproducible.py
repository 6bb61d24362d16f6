"""One sequence of rows for any number of hosts, workers and restarts; skipped windows; mixtures by size."""
import json
import os
import signal

import numpy as np
import pytest
from hypothesis import given, strategies as st

from t5like.batches import inspect, pipeline, plans
from t5like.config import stages
from t5like.errors import ConfigError, DataError
from t5like.objectives import lengths
from t5like.prepared import opening
from tests import tiny
from tests.batches.test_pipeline import equal, first
from tests.batches.test_rows import PAIRED, SENTINELS, T5, leaves

pytestmark = pytest.mark.usefixtures('compile_once')

KINDS = dict(
    causal=dict(data=dict(shards=3)),
    span_packed=dict(objective=dict(name='span_corruption'), data=dict(packing='best_fit', shards=2), **T5,
                     **SENTINELS),
    seq2seq_packed_mixture=dict(
        data=dict(PAIRED, mixture=dict(copy=dict(weight=5), shout=dict(weight=3, data=dict(inputs='shout: {text}')),
                                       letters=dict(weight=2, data=dict(source='copy:8', inputs='{inputs}',
                                                                        targets='{targets}', max_documents=300)))),
        objective=dict(name='seq2seq'), **T5))


@pytest.fixture(scope='module', params=KINDS)
def opened(request, tmp_path_factory):
  changes = {k: dict(v) for k, v in KINDS[request.param].items()}
  changes['model'] = dict(changes['model'] if 'model' in changes else {}, vocab_size=304)
  config = tiny.config(tmp_path_factory.mktemp('rows'), batch_size=16, **changes)
  return config, opening.open_data(config, say=lambda _: None)


def flat(batches):
  return [leaves(b) for b in batches]


def of_host(config, host, hosts):
  """The rows of a batch that a host has where hosts share it in blocks."""
  size = config.batch_size // hosts
  return range(host * size, (host + 1) * size)


@pytest.mark.parametrize('hosts', [2, 4, 16])
def test_hosts_share_the_same_batches(hosts, opened):
  config, store = opened
  parts = [flat(first(config, store, 3, seen=32, mine=of_host(config, h, hosts))) for h in range(hosts)]
  joined = [{k: np.concatenate([p[i][k] for p in parts]) for k in parts[0][i]} for i in range(3)]
  equal(joined, flat(first(config, store, 5))[2:])


@pytest.mark.parametrize('workers', [2, pytest.param(8, marks=pytest.mark.slow)])
def test_workers_change_nothing(workers, opened):
  config, store = opened
  whole = flat(first(config, store, 6))
  config = config.copy_and_resolve_references()
  config.data.workers = workers
  equal(flat(first(config, store, 4, seen=32)), whole[2:])


def test_restarts_with_other_hosts_and_batch_sizes(opened):
  """8 batches of 16; then the same rows as 1 x 16, 2 hosts x 32, 4 hosts x 16 and 16 hosts x 64."""
  config, store = opened
  whole = flat(first(config, store, 8))
  rows = {k: np.concatenate([b[k] for b in whole]) for k in whole[0]}
  seen = 0
  for hosts, size in ((1, 16), (2, 32), (4, 16), (16, 64)):
    config = config.copy_and_resolve_references()
    config.batch_size = size
    parts = [flat(first(config, store, 1, seen=seen, mine=of_host(config, h, hosts))) for h in range(hosts)]
    for k in rows:
      np.testing.assert_array_equal(np.concatenate([p[0][k] for p in parts]), rows[k][seen:seen + size])
    seen += size


def test_killed_workers_lose_nothing(tmp_path):
  """A worker that is killed ends the reading with an error; a new start goes on with the same rows."""
  import psutil
  config = tiny.config(tmp_path, batch_size=8, data=dict(workers=2))
  store = opening.open_data(config, say=lambda _: None)
  rows = pipeline.TrainRows(store, config)
  before, seen = {p.pid for p in psutil.Process().children(recursive=True)}, 0
  found = []
  with pytest.raises(DataError, match='reading process .*killed.*resumes'), \
       pipeline.train_batches(rows, config) as batches:
    for _ in range(200):
      found.append(next(batches))
      seen += 8
      if len(found) == 3:
        workers = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        for p in workers:
          if 'resource_tracker' not in ' '.join(p.cmdline()):
            os.kill(p.pid, signal.SIGKILL)
  config.data.workers = 0
  equal(found + first(config, store, 2, seen=seen), first(config, store, len(found) + 2))


# --- Windows of rows that are left out ------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=5), st.integers(0, 80), st.integers(0, 40))
def test_after_counts_what_is_not_skipped(windows, row, count):
  skipped = lengths.merged([(start, start + n) for start, n in windows])
  kept = [i for i in range(row, 1000) if not any(a <= i < b for a, b in skipped)]
  assert pipeline.after(skipped, row, count) == kept[count]


def test_skipped_windows_are_left_out_on_every_host(opened):
  config, store = opened
  rows, skipped = pipeline.TrainRows(store, config), [(8, 20), (40, 41)]
  wanted = [i for i in range(200) if not any(a <= i < b for a, b in skipped)]
  for hosts in (1, 4):
    found = []
    for h in range(hosts):
      size = config.batch_size // hosts
      with pipeline.train_batches(rows, config, 0, range(h * size, (h + 1) * size), skipped) as batches:
        found.append([next(batches) for _ in range(3)])
    for step in range(3):
      joined = {k: np.concatenate([leaves(f[step])[k] for f in found]) for k in leaves(found[0][step])}
      equal([joined], flat([rows.batch(wanted[16 * step:16 * step + 16])]))
  assert sum(rows.used(64, skipped).values()) == (64 - 13 if len(rows.parts) > 1 else 0)


def test_windows_are_recorded_once_asked_for():
  config = tiny.base()
  config.data.skip_rows = '100:200, 1K:2K'
  assert pipeline.to_skip(config, 0, []) == [(100, 200), (1000, 2000)]
  assert pipeline.to_skip(config, 150, []) == [(150, 200), (1000, 2000)]  # what was read before stays read
  assert pipeline.to_skip(config, 5000, [(150, 200), (1000, 2000)]) == [(150, 200), (1000, 2000)]
  config.data.skip_rows = ''
  assert pipeline.to_skip(config, 150, [(150, 200)]) == [(150, 200)]
  config.data.skip_rows = '100:200'
  with pytest.raises(ConfigError, match='rows 100 to 199 were trained on already, this run is at row 300'):
    pipeline.to_skip(config, 300, [])


def test_a_run_records_and_honours_what_it_skips(tmp_path):
  from t5like.training import loop
  seen, real = [], pipeline.TrainRows.batch
  config = tiny.config(tmp_path, steps=4, log=dict(every=1), data=dict(skip_rows='16:40'))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipeline.TrainRows, 'batch', lambda self, rows: seen.append(list(rows)) or real(self, rows))
    loop.train(config, tmp_path / 'run', 'run')
    assert seen[:4] == [list(range(16)), list(range(40, 56)), list(range(56, 72)), list(range(72, 88))]
    assert [m['examples_seen'] for m in tiny.metrics(tmp_path / 'run')[0]] == [40, 56, 72, 88]
    seen.clear()
    config.data.skip_rows, config.stop.tokens = '90:100', config.stop.tokens * 2  # the old window is remembered
    loop.train(config, tmp_path / 'run', 'run')
  assert seen[0] == [88, 89, *range(100, 114)]
  from t5like.storage.checkpoint import Checkpoints
  with Checkpoints(tmp_path / 'run') as checkpoints:
    meta = checkpoints.meta(checkpoints.steps[-1])
  assert meta['skipped'] == [[16, 40], [90, 100]] and meta['examples_seen'] == 162


# --- Mixtures -------------------------------------------------------------------------------------


def mixed(folder, documents, **data):
  parts = {}
  for name, count in documents.items():
    folder.mkdir(exist_ok=True)
    parts[name] = dict(data=dict(source=tiny.write_text(folder / f'{name}.jsonl', count, seed=count)))
  config = tiny.config(folder, data=dict(mixture=parts, validation_fraction=0.05, **data))
  return config, opening.open_data(config, say=lambda _: None)


@pytest.mark.parametrize('cap, temperature', [(0, 1.0), (150, 1.0), (0, 2.0), (150, 4.0)])
def test_rates_by_examples_are_t5s(cap, temperature, tmp_path):
  """min(e, K)^(1/T) / sum, as in Raffel et al. 2020, section 3.5.2."""
  config, store = mixed(tmp_path, dict(big=400, small=100, tiny=30), mixture_rates='examples', mixture_cap=cap,
                        mixture_temperature=temperature)
  rows = pipeline.TrainRows(store, config)
  sizes = [store.of(c).manifest['splits']['train']['documents'] for c in lengths.components(config)]
  rates = np.array([min(n, cap or n) ** (1 / temperature) for n in sizes])
  np.testing.assert_allclose(np.array(list(rows.counts(10 ** 6).values())) / 10 ** 6, rates / rates.sum(), atol=1e-5)


def test_stages_change_weights_at_a_token_count_and_are_logged(tmp_path):
  from t5like.training import loop
  config, store = mixed(tmp_path, dict(big=200, late=50), stages=dict(
      end=dict(tokens=str(3 * 16 * 32), weights=dict(big=1, late=3))))
  config.data.mixture.late.weight = 0
  loop.train(config, tmp_path / 'run', 'run')
  used = [(m['rows/big'], m['rows/late']) for m in tiny.metrics(tmp_path / 'run')[0]]
  assert used[:4] == [(16, 0), (32, 0), (48, 0), (52, 12)] and sum(used[-1]) == 96
  lines = list(pipeline.TrainRows(store, config).describe(96))
  assert lines[0].startswith('big: 62.5% of rows') and lines[1].startswith('late: 37.5% of rows')


@pytest.mark.parametrize('packing', ['concat_split', 'best_fit'])
def test_rows_of_stages_are_those_of_plain_runs_one_after_the_other(packing, tmp_path):
  """The same rows where their length stays; where it changes, from the same place of the epoch on."""
  listed = ({'tokens': 5 * 16 * 32 - 3, 'objective.name': 'prefix_lm'},
            {'tokens': 8 * 16 * 32, 'data.seq_len': 64, 'batch_size': 8})
  c = tiny.config(tmp_path, steps=12, stages=listed, data=dict(packing=packing))
  store = opening.open_data(c, say=lambda _: None)
  parts = stages.of(c)
  firsts = [0, 5 * 16, 8 * 16]
  rows = pipeline.TrainRows(store, c)
  sizes = [pipeline.Stretch(*numbers) for numbers in ((5, 16, range(16)), (3, 16, range(16)), (9, 8, range(8)))]
  with pipeline.train_batches(rows, c, stretches=sizes) as batches:
    staged = [leaves(next(batches)) for _ in range(12)]
  plain = [pipeline.TrainRows(store, stage.config) for stage in parts]
  at = -(-firsts[2] * len(plain[2].parts[0]) // len(plain[1].parts[0]))
  expected = [plain[0].batch(range(i, i + 16)) for i in range(0, 80, 16)]
  expected += [plain[1].batch(range(i, i + 16)) for i in range(80, 128, 16)]
  expected += [plain[2].batch(range(at + i, at + i + 8)) for i in range(0, 32, 8)]
  equal(staged, flat(expected))
  assert [inspect.stage_of(c, step)[0].stage for step in (0, 4, 5, 7, 8, 30)] == [0, 0, 1, 1, 2, 2]
  assert rows.used(140, []) == {} and abs(at - 64) <= 4 and rows.stage(127) is not rows.stage(128)


def test_a_stage_of_another_objective_begins_where_its_dataset_is(tmp_path):
  """Seven denoisers become one: after the epochs that all of them have read together."""
  plain_from = {'tokens': 100 * 64, 'objective.name': 'span_corruption'}
  c = tiny.config(tmp_path, objective=dict(name='ul2'), model=dict(T5['model'], vocab_size=384), data=dict(seq_len=64),
                  stages=(plain_from,), **SENTINELS)
  with c.unlocked():
    c.update(batch_size=1)
    c.stop.tokens = 10 ** 6
  rows = pipeline.TrainRows(opening.open_data(c, say=lambda _: None), c)
  denoisers, plain = rows.stages
  counts = list(rows.counts(100).values())[:len(denoisers.parts)]
  epochs = sum(count / len(part) for count, part in zip(counts, denoisers.parts))
  assert len(denoisers.parts) == 7 and sum(counts) == 100 and len(plain.parts) == 1
  assert plain.ranks == [int(np.ceil(epochs * len(plain.parts[0]) - 1e-9))] and rows.component(100)[2] == int(epochs)


def test_stages_continue_with_each_component_where_it_was(tmp_path):
  c, store = mixed(tmp_path, dict(a=60, b=60, c=60))
  for name, weight in zip('abc', (1, 1, 0)):
    c.data.mixture[name].weight = weight
  with c.unlocked():
    c.stages = ({'tokens': 1234 * 32, 'data.mixture.b.weight': 0, 'data.mixture.c.weight': 3},
                {'tokens': 5000 * 32, 'data.mixture.a.weight': 0})
    c.update(batch_size=1)
    c.stop.tokens = 10 ** 6
  rows = pipeline.TrainRows(store, c)
  dealt = [rows.component(i) for i in range(6000)]
  assert np.bincount([k for k, _, _ in dealt[:1234]], minlength=3).tolist() == [617, 617, 0]
  later = np.bincount([k for k, _, _ in dealt[1234:5000]], minlength=3)
  assert np.abs(later - [941.5, 0, 2824.5]).max() <= 1 and {k for k, _, _ in dealt[5000:]} == {2}
  for k, part in enumerate(rows.parts):
    own = [(number, epoch) for component, number, epoch in dealt if component == k]
    assert [epoch for _, epoch in own] == [rank // len(part) for rank in range(len(own))]
    assert sorted(number for number, _ in own[:len(part)]) == list(range(len(part)))
  counts = np.bincount([k for k, _, _ in dealt[:5500]])
  assert rows.counts(5500) == dict(zip('abc', counts.tolist()))
  assert sum(rows.used(5500, [(1200, 1300)]).values()) == 5400


def test_windows_of_a_real_mixture(tmp_path):
  config, store = mixed(tmp_path, dict(a=60, b=60, c=60))
  for name, weight in zip('abc', (0.5013, 0.3337, 0.165)):
    config.data.mixture[name].weight = weight
  rows = pipeline.TrainRows(store, config)
  dealt = np.array([rows.component(i)[0] for i in range(4000)])
  for k, weight in enumerate((0.5013, 0.3337, 0.165)):
    counts = np.cumsum(np.concatenate([[0], dealt == k]))
    assert np.abs(counts[1000:] - counts[:-1000] - 1000 * weight).max() <= 1


# --- Plans that are kept --------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['span_packed', 'seq2seq_packed_mixture'])
def test_plans_on_disk_are_those_in_memory(kind, tmp_path, monkeypatch):
  changes = {k: dict(v) for k, v in KINDS[kind].items()}
  changes['model']['vocab_size'] = 304
  config = tiny.config(tmp_path, batch_size=16, **changes)
  store = opening.open_data(config, say=lambda _: None)
  whole = flat(first(config, store, 3))
  monkeypatch.setattr(plans, 'KEPT', 0)
  equal(flat(first(config, store, 3)), whole)
  kept = sorted((tmp_path / 'prepared').glob('*/plans/*/rows.npy'))
  assert len(kept) == (1 if kind == 'span_packed' else 3) and not list(kept[0].parent.parent.glob('*.tmp'))
  made = kept[0].stat().st_mtime_ns
  rows = pipeline.TrainRows(store, config)
  import pickle
  assert kept[0].stat().st_mtime_ns == made and len(pickle.dumps(rows.parts[0].plan)) < 500
  plan = rows.parts[0].plan
  np.testing.assert_array_equal(plan.sizes[3:9], np.load(plan._folder / 'sizes.npy')[3:9])
  config.data.workers = 2
  equal(flat(first(config, store, 3)), whole)
  config.data.workers, config.seed = 0, 1
  pipeline.TrainRows(store, config)
  assert len(list((tmp_path / 'prepared').glob('*/plans/*/rows.npy'))) == 2 * len(kept)  # another seed, another plan


def test_a_plan_that_cannot_be_kept_is_made_anyway(tmp_path, monkeypatch):
  monkeypatch.setattr(plans, 'KEPT', 0)
  (tmp_path / 'plans').write_text('in the way')
  plan = plans.plan(tmp_path, ['key'], 5, lambda: dict(rows=np.arange(3), starts=1, sizes=2, fill=3))
  assert len(plan) == 2 and plan.fill == 3


# --- Where rows come from -------------------------------------------------------------------------


def test_inspect_names_the_documents_of_a_row(tmp_path):
  import io

  from rich.console import Console

  from t5like.batches import inspect
  config = tiny.config(tmp_path, batch_size=8, data=dict(shards=2))
  store = opening.open_data(config, say=lambda _: None)
  rows = pipeline.TrainRows(store, config)
  text = {i: json.loads(line)['text'] for i, line in enumerate((tmp_path / 'text.jsonl').read_text().splitlines(), 1)}
  offsets = np.cumsum([0] + [len(line) + 1 for line in (tmp_path / 'text.jsonl').read_text().splitlines()])
  for index in (3 * 8 + 5, 11 * 8):
    out = io.StringIO()
    inspect.show(store, config, index // 8, 1, index % 8, console=Console(file=out, width=200))
    part, number = rows.parts[0], rows.component(index)[1]
    tokens = part.windows[number].tolist()
    documents = [d for span in part.spans(number) for d in store.names('train', *span)]
    assert sum(count for *_, count in documents) == len(tokens)
    at = 0
    for name, begin, count in documents:
      assert f'{name}, tokens {begin} to {begin + count - 1}' in out.getvalue()
      place = name.removeprefix(f'{tmp_path}/text.jsonl')
      line = int(place[1:]) if place[0] == ':' else int(np.searchsorted(offsets, int(place[1:]))) + 1
      ids = [*store.vocabulary.encode(text[line]).tolist(), store.vocabulary.eos_id]
      assert tokens[at:at + count] == ids[begin:begin + count]
      at += count
  with pytest.raises(ConfigError, match='--row=8: a batch has rows 0 to 7'):
    inspect.show(store, config, 0, 1, 8)
