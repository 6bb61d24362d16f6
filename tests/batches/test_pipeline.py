"""Rows as a function of the index alone, and the objective that makes them."""
import io

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from rich.console import Console

from t5like.batches import inspect, pipeline
from t5like.objectives import functions
from t5like.prepared import opening
from tests import tiny

M = functions.MISSING


def test_causal_golden():
  """The example of seqio's LMFeatureConverter (specs, 1a)."""
  got = functions.causal(np.array([[3, 9, 1, 4, 1, M]], np.int32), document_mask=True, eos_id=1)
  assert {k: v[0].tolist() for k, v in got.items()} == dict(
      targets=[3, 9, 1, 4, 1, 0], inputs=[0, 3, 9, 0, 4, 0], weights=[1, 1, 1, 1, 1, 0],
      positions=[0, 1, 2, 0, 1, 0], segments=[1, 1, 1, 2, 2, 0])


def test_causal_without_document_mask():
  got = functions.causal(np.array([[3, 1, 4, 5, M]], np.int32), document_mask=False, eos_id=1)
  assert {k: v[0].tolist() for k, v in got.items()} == dict(
      inputs=[3, 1, 4, 5], targets=[1, 4, 5, 0], weights=[1, 1, 1, 0], positions=[0, 1, 2, 3],
      segments=[1, 1, 1, 0])


@settings(max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(0, 4))
def test_causal_properties(tokens, padding):
  row = np.array([tokens + [M] * padding], np.int32)
  b = {k: v[0] for k, v in functions.causal(row, document_mask=True, eos_id=1).items()}
  n = len(tokens)
  assert b['targets'][:n].tolist() == tokens and b['weights'].sum() == n and not b['segments'][n:].any()
  for t in range(n):
    starts = t == 0 or tokens[t - 1] == 1
    assert b['inputs'][t] == (0 if starts else tokens[t - 1])
    assert (b['positions'][t] == 0) == starts
    assert b['segments'][t] == 1 + tokens[:t].count(1)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp('rows')
  config = tiny.config(folder, batch_size=8)
  return config, opening.open_data(config, say=lambda _: None)


def part(config, host, hosts):
  """Rows of the batch that are this host's where hosts have one after the other."""
  size = config.batch_size // hosts
  return range(host * size, (host + 1) * size)


def first(config, store, n, seen=0, mine=None):
  with pipeline.train_batches(pipeline.TrainRows(store, config), config, seen, mine) as batches:
    return [next(batches) for _ in range(n)]


def equal(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b):
    for key in x:
      np.testing.assert_array_equal(x[key], y[key])


@pytest.mark.parametrize('hosts', [2, 4, 8])
def test_hosts_share_the_same_batch(hosts, prepared):
  parts = [first(*prepared, 3, mine=part(prepared[0], h, hosts)) for h in range(hosts)]
  joined = [{k: np.concatenate([p[i][k] for p in parts]) for k in parts[0][i]} for i in range(3)]
  equal(joined, first(*prepared, 3))


def test_restarts_and_other_batch_sizes_go_on_from_the_sample(prepared):
  config, store = prepared
  whole = first(config, store, 6)
  equal(first(config, store, 2, seen=32), whole[4:])
  config = config.copy_and_resolve_references()
  config.batch_size = 4
  halves = first(config, store, 4, seen=16)
  equal([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in (halves[:2], halves[2:])], whole[2:4])


@pytest.mark.parametrize('workers', [1, 2])
def test_worker_processes_change_nothing(workers, prepared):
  config, store = prepared
  config = config.copy_and_resolve_references()
  config.data.workers = workers
  equal(first(config, store, 5), first(*prepared, 5))


def test_an_epoch_has_each_window_once_and_the_next_is_in_another_order(prepared):
  config, store = prepared
  rows = pipeline.TrainRows(store, config)
  n = len(rows.parts[0])
  epochs = [[rows.component(i)[1] for i in range(e * n, (e + 1) * n)] for e in range(2)]
  assert all(sorted(e) == list(range(n)) for e in epochs) and epochs[0] != epochs[1]
  far = rows.batch(range(10 ** 12, 10 ** 12 + 2))
  assert far['inputs'].shape == (2, 32)


def test_hosts_may_have_any_rows(prepared):
  """As many devices of a pod hold pieces of the same rows, or of rows that do not follow each other."""
  whole, some = first(*prepared, 3), first(*prepared, 3, mine=[1, 4, 5])
  equal(some, [{k: x[[1, 4, 5]] for k, x in batch.items()} for batch in whole])


@pytest.mark.parametrize('document_mask', [True, False])
@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_validation_sees_every_token_once(hosts, document_mask, prepared):
  config, store = prepared
  config = config.copy_and_resolve_references()
  config.evaluate.batches = 0
  config.data.document_mask = document_mask
  batches = [[b for _, b in pipeline.evaluation_batches(store, config, 'validation', part(config, h, hosts))]
             for h in range(hosts)]
  assert len({len(b) for b in batches}) == 1
  rows = [np.concatenate([b[i]['targets'] for b in batches]) for i in range(len(batches[0]))]
  weights = [np.concatenate([b[i]['weights'] for b in batches]) for i in range(len(batches[0]))]
  seen = np.concatenate(rows)[np.concatenate(weights) > 0]
  windows = store.windows('validation', 1)
  text = np.concatenate([windows[i] for i in range(len(windows))])
  np.testing.assert_array_equal(seen, text if document_mask else text[1:])  # nothing precedes the first


def test_inspect_shows_text_and_targets(prepared):
  config, store = prepared
  out = io.StringIO()
  inspect.show(store, config, 3, 2, console=Console(file=out, width=120))
  text = out.getvalue()
  row = pipeline.TrainRows(store, config).batch([24])
  words = store.vocabulary.decode(row['targets'][0][row['segments'][0] == 1])
  assert 'row 24' in text and 'row 25' in text and words.strip() in ' '.join(text.split())
  ended = row['targets'][0][row['segments'][0] == 1][-1] == store.vocabulary.eos_id
  assert ('<eos>' in text) or not ended
