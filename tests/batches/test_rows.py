"""Rows of every objective, packing and mixture, as functions of the index alone."""
import json
import random

import numpy as np
import pytest

from t5like.batches import inspect, pipeline
from t5like.objectives import lengths
from t5like.prepared import opening
from tests import tiny
from tests.batches.test_pipeline import equal, first
from tests.goldens import rows as golden_rows

T5 = dict(model=dict(name='encoder_decoder', position='relative'))
SENTINELS = dict(vocabulary=dict(sentinels=40))
PAIRED = dict(inputs='copy: {text}', targets='{text}', packing='best_fit', target_len=96, seq_len=96)
KINDS = dict(
    causal={}, causal_fit=dict(data=dict(packing='best_fit', seq_len=64)),
    prefix=dict(objective=dict(name='prefix_lm')),
    masked=dict(model=dict(name='encoder'), objective=dict(name='masked_lm', whole_word=True, cls_sep=True),
                **SENTINELS),
    masked_fit=dict(model=dict(name='encoder'), objective=dict(name='masked_lm'), data=dict(packing='best_fit'),
                    **SENTINELS),
    span=dict(objective=dict(name='span_corruption'), **T5, **SENTINELS),
    span_fit=dict(objective=dict(name='span_corruption'), data=dict(packing='best_fit'), **T5, **SENTINELS),
    span_decoder=dict(objective=dict(name='span_corruption'), **SENTINELS),
    roll=dict(objective=dict(name='span_corruption', roll=True), **T5, **SENTINELS),
    iid=dict(objective=dict(name='iid_denoising'), **T5, **SENTINELS),
    deshuffling=dict(objective=dict(name='deshuffling'), data=dict(packing='none'), **T5),
    ul2=dict(objective=dict(name='ul2'), data=dict(seq_len=64), **T5, **SENTINELS),
    ul2_decoder=dict(objective=dict(name='ul2'), data=dict(seq_len=96), **SENTINELS),
    seq2seq=dict(objective=dict(name='seq2seq'), data=PAIRED, **T5),
    seq2seq_decoder=dict(objective=dict(name='seq2seq'), data=PAIRED),
    mixture=dict(data=dict(seq_len=64, mixture=dict(
        spans=dict(weight=5), copy=dict(weight=3, data={k: PAIRED[k] for k in ('inputs', 'targets', 'packing')},
                                        objective=dict(name='seq2seq')),
        letters=dict(weight=2, data=dict(source='iid:8', max_documents=1, validation='tail')))),
                 objective=dict(name='span_corruption'), **T5, **SENTINELS))


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  folder, made = tmp_path_factory.mktemp('rows'), {}

  def open_kind(kind):
    if kind not in made:
      changes = {k: dict(v) for k, v in KINDS[kind].items()}
      changes['model'] = dict(changes['model'] if 'model' in changes else {}, vocab_size=304)
      (folder / kind).mkdir()
      config = tiny.config(folder / kind, batch_size=8, **changes)
      made[kind] = config, opening.open_data(config, say=lambda _: None)
    return made[kind]
  return open_kind


def leaves(batch):
  return {**{k: v for k, v in batch.items() if k != 'encoder'},
          **{f'encoder {k}': v for k, v in (batch['encoder'] if 'encoder' in batch else {}).items()}}


@pytest.mark.parametrize('kind', KINDS)
def test_the_same_on_any_number_of_hosts_after_any_restart(kind, opened):
  config, store = opened(kind)
  whole = [leaves(b) for b in first(config, store, 4)]
  shapes = lengths.shapes(config)
  assert whole[0]['inputs'].shape == (8, shapes.targets)
  assert whole[0]['targets'].shape == (8, shapes.predictions or shapes.targets)
  for hosts in (2, 8):
    size = config.batch_size // hosts
    parts = [[leaves(b) for b in first(config, store, 4, mine=range(h * size, (h + 1) * size))] for h in range(hosts)]
    equal([{k: np.concatenate([p[i][k] for p in parts]) for k in parts[0][i]} for i in range(4)], whole)
  equal([leaves(b) for b in first(config, store, 1, seen=24)], whole[3:])


@pytest.mark.parametrize('kind', ['span', 'masked', 'ul2', 'mixture'])
def test_worker_processes_change_nothing(kind, opened):
  config, store = opened(kind)
  other = config.copy_and_resolve_references()
  other.data.workers = 2
  equal([leaves(b) for b in first(other, store, 3)], [leaves(b) for b in first(config, store, 3)])


@pytest.mark.parametrize('kind', KINDS)
def test_rows_are_well_formed(kind, opened):
  """Segments count up from 1 and padding is at the end; positions restart; weights only where there are tokens."""
  config, store = opened(kind)
  rows = pipeline.TrainRows(store, config)
  batch = rows.batch(range(24))
  for part in [batch, *([batch['encoder']] if 'encoder' in batch else [])]:
    for segments, positions in zip(part['segments'], part['positions']):
      n = int((segments > 0).sum())
      assert not segments[n:].any() and segments[0] == 1
      assert (np.diff(segments[:n]) >= 0).all() and (np.diff(segments[:n]) <= 1).all()
      for s in np.unique(segments[:n]):
        assert positions[segments == s].tolist() == list(range((segments == s).sum()))
    assert part['inputs'].max() < store.vocabulary.size and part['inputs'].min() >= 0
  if 'predict' in batch:
    seen = np.take_along_axis(batch['segments'], batch['predict'], 1)
    assert (seen[batch['weights'] > 0] > 0).all()
  else:
    assert (batch['segments'][batch['weights'] > 0] > 0).all()
  if 'encoder' in batch:  # every segment of a row is on both sides, or has no inputs at all
    for a, b in zip(batch['segments'], batch['encoder']['segments']):
      assert set(a[a > 0]) == set(b[b > 0])
  assert (batch['weights'].sum(1) > 0).all()


@pytest.mark.parametrize('kind', ['span', 'masked', 'ul2', 'prefix', 'iid', 'roll'])
def test_another_epoch_or_seed_draws_anew(kind, opened):
  config, store = opened(kind)
  part = pipeline.TrainRows(store, config).parts[0]
  once, again, later = (leaves(part.batch([1], [e])) for e in (0, 0, 1))
  equal([once], [again])
  assert any((once[k] != later[k]).any() for k in once)
  other = config.copy_and_resolve_references()
  other.seed = 5
  reseeded = leaves(pipeline.TrainRows(store, other).parts[0].batch([1], [0]))
  assert any(reseeded[k].shape != once[k].shape or (once[k] != reseeded[k]).any() for k in once)


def texts_of(store, split='train'):
  examples = store.examples(split)
  return sorted(store.vocabulary.decode(np.concatenate(examples[i])) for i in range(len(examples)))


@pytest.mark.parametrize('kind', ['causal_fit', 'masked_fit', 'span_fit'])
def test_an_epoch_of_planned_rows_holds_every_document_once(kind, opened):
  config, store = opened(kind)
  part = pipeline.TrainRows(store, config).parts[0]
  spans = sorted(span for number in range(len(part)) for span in part.spans(number))
  examples = store.examples('train')
  least = 1 + part.is_pairs  # tokens of a text; of pairs, the document's own end is left out
  for i, size in enumerate(examples.lengths[:, 0].tolist()):
    begin = int(examples.starts[i])
    own = [(start - begin, n) for start, n in spans if begin <= start < begin + size]
    assert sum(n for _, n in own) >= size - part.is_pairs - (least - 1)
    assert [start for start, _ in own] == [sum(n for _, n in own[:k]) for k in range(len(own))]
  assert len(set(spans)) == len(spans)


def test_packed_documents_are_predicted_as_if_alone(opened):
  """Targets of a causal row, segment by segment, are whole documents or full pieces of long ones."""
  config, store = opened('causal_fit')
  batch = pipeline.TrainRows(store, config).batch(range(16))
  documents = set(texts_of(store))
  for targets, segments in zip(batch['targets'], batch['segments']):
    for s in range(1, segments.max() + 1):
      ids = targets[segments == s]
      text = store.vocabulary.decode(ids)
      assert text in documents if ids[-1] == 1 and len(ids) < 64 and text in documents else any(
          text in d for d in documents)


def test_given_targets(opened):
  config, store = opened('seq2seq')
  batch = pipeline.TrainRows(store, config).batch(range(16))
  pairs = 0
  for row in range(16):
    for s in range(1, batch['segments'][row].max() + 1):
      source = batch['encoder']['inputs'][row][batch['encoder']['segments'][row] == s]
      target = batch['targets'][row][batch['segments'][row] == s]
      assert source[-1] == target[-1] == 1
      source, target = store.vocabulary.decode(source), store.vocabulary.decode(target)
      assert source.startswith('copy: ') and (source[6:] == target[:len(source) - 6])
      pairs += 1
  assert pairs >= 16


def test_mixtures_are_exact_over_every_window(opened):
  config, store = opened('mixture')
  rows = pipeline.TrainRows(store, config)
  dealt = [rows.component(i) for i in range(400)]
  for start in (0, 37, 200):
    counts = np.bincount([k for k, _, _ in dealt[start:start + 100]], minlength=3)
    assert rows.names == ['copy', 'letters', 'spans'] and np.abs(counts - [30, 20, 50]).max() <= 1
  for k, part in enumerate(rows.parts):
    own = [(n, e) for of, n, e in dealt if of == k]
    assert [e for _, e in own] == [r // len(part) for r in range(len(own))]  # an epoch, then the next
    assert sorted(n for n, e in own[:len(part)]) == sorted(range(len(part)))[:len(own)] or len(own) < len(part)
  assert [store.of(c) for c in lengths.components(config)][0] is not store


@pytest.mark.parametrize('kind', ['seq2seq', 'masked_fit', 'mixture', 'ul2', 'span'])
@pytest.mark.parametrize('hosts', [1, 4])
def test_validation_has_every_row_once_and_is_the_same_for_every_seed(kind, hosts, opened):
  config, store = opened(kind)
  config = config.copy_and_resolve_references()
  config.evaluate.batches = 0
  size = config.batch_size // hosts
  found = [list(pipeline.evaluation_batches(store, config, 'validation', range(h * size, (h + 1) * size)))
           for h in range(hosts)]
  assert len({tuple(name for name, _ in f) for f in found}) == 1
  weights = sum(b['weights'].sum() for f in found for _, b in f)
  config.seed = 9
  again = [list(pipeline.evaluation_batches(store, config, 'validation', range(size)))]
  equal([leaves(b) for _, b in again[0]], [leaves(b) for _, b in found[0]])
  if kind == 'seq2seq':
    sizes = store.examples('validation').lengths
    assert weights == np.minimum(sizes[:, 1], 96).sum()


def test_packing_of_real_documents_is_dense(tmp_path):
  """At least 98 % of the positions of rows planned for Python's own documentation are used."""
  c = tiny.config(tmp_path, data=dict(source='python_docs', max_documents=600, packing='best_fit', seq_len=1024),
                  stop=dict(tokens=10 ** 6))
  store = opening.open_data(c, say=lambda _: None)
  part = pipeline.TrainRows(store, c).parts[0]
  assert part.plan.fill[0] >= 0.98
  batch = part.batch(list(range(len(part))), [0] * len(part))
  assert np.isclose((batch['segments'] > 0).mean(), part.plan.fill[0])


@pytest.mark.parametrize('kind', ['span', 'masked', 'mixture', 'seq2seq_decoder'])
def test_inspect_shows_every_kind(kind, opened):
  import io

  from rich.console import Console
  config, store = opened(kind)
  out = io.StringIO()
  inspect.show(store, config, 2, 3, console=Console(file=out, width=120))
  text = out.getvalue()
  assert 'row 16' in text and 'row 18' in text and 'epochs of' in text
  assert ('The encoder reads' in text) == (kind != 'seq2seq_decoder')


def test_documents_of_any_length_are_planned(tmp_path):
  """Long ones are cut, short ones share rows, none is lost."""
  rng = random.Random(1)
  texts = [''.join(rng.choices('abc', k=k)) for k in (1, 2, 3, 31, 32, 33, 63, 64, 65, 200, 7, 7, 7)]
  (tmp_path / 'd.jsonl').write_text(''.join(json.dumps(dict(text=t)) + '\n' for t in texts * 4))
  c = tiny.config(tmp_path, data=dict(source=f'jsonl:{tmp_path}/d.jsonl', packing='best_fit', validation='tail'))
  store = opening.open_data(c, say=lambda _: None)
  part = pipeline.TrainRows(store, c).parts[0]
  batch = part.batch(list(range(len(part))), [0] * len(part))
  assert int(batch['weights'].sum()) == store.manifest['splits']['train']['tokens']


def test_rows_and_questions_of_every_objective_are_those_kept(tmp_path):
  """Of every objective, architecture and packing: see tests/goldens/rows.py."""
  kept, now = json.loads(golden_rows.FILE.read_text()), golden_rows.everything(tmp_path)
  assert list(now) == list(kept)
  for key, values in now.items():
    assert values == kept[key], key
