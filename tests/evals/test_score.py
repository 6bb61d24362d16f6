"""Log-likelihoods of every kind of model against a plain loop over model.apply, one token at a time."""
import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like import sharding
from t5like.errors import ConfigError
from t5like.evals import ask, score
from t5like.model import models
from t5like.vocabulary import loading as vocabulary_lib
from tests import tiny

KINDS = dict(
    document=dict(),
    long_document=dict(data=dict(seq_len=256)),
    stream=dict(data=dict(document_mask=False)),
    prefix=dict(objective=dict(name='prefix_lm')),
    spans_in_a_row=dict(objective=dict(name='span_corruption')),
    masked=dict(model=dict(name='encoder', head='mlm'), objective=dict(name='masked_lm')),
    masked_ends=dict(model=dict(name='encoder'), objective=dict(name='masked_lm', cls_sep=True)),
    spans=dict(model=dict(name='encoder_decoder', position='relative'), objective=dict(name='span_corruption'),
               data=dict(target_len=32)),
    denoisers=dict(model=dict(name='encoder_decoder'), objective=dict(name='ul2'), data=dict(seq_len=48)),
    given=dict(model=dict(name='encoder_decoder'), objective=dict(name='seq2seq'),
               data=dict(inputs='{text}', targets='{text}', target_len=32, packing='best_fit')),
    spoilt=dict(model=dict(name='encoder_decoder'), objective=dict(name='bert_style'), data=dict(target_len=32)),
)
QUESTIONS = [('the a of', ' to in'), ('', 'is it'), ('for on as ', 'x'), ('a', ' that this fro'), ('be ', 'was')]


@functools.cache
def setting(kind, folder, devices=1, **mesh):
  return made(KINDS[kind], folder, vocabulary_lib.Bytes(40), devices, **mesh)


def made(options, folder, vocabulary, devices=1, **mesh):
  """(config, model, random params, vocabulary, mesh) of changes of a tiny config."""
  options = {k: dict(v) for k, v in options.items()}
  options['model'] = dict(dict(vocab_size=304), **options.get('model', {}))
  c = tiny.config(folder, steps=100, vocabulary=dict(sentinels=40), **options)
  c = models.with_vocabulary(c, vocabulary)
  mesh = sharding.make_mesh(dict(mesh) or {'fsdp': devices}, jax.devices()[:devices])
  with jax.set_mesh(mesh):
    model, _ = models.build_model(c)
    layout = jax.tree.map(lambda x: x.sharding, sharding.abstract(lambda: model.init(jax.random.key(1)), mesh))
    params = jax.jit(model.init, out_shardings=layout)(jax.random.key(1))
  # Off their initial values, so that nothing is nearly uniform.
  params = jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, params)
  return c, model, params, vocabulary, mesh


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('score')


def row(ids, prefix=0, **more):
  n = len(ids)
  out = dict(inputs=np.array([ids], np.int32), positions=np.arange(n, dtype=np.int32)[None],
             segments=np.ones((1, n), np.int32), **more)
  return dict(out, prefix=np.arange(n)[None] < prefix) if prefix else out


def plainly(kind, folder, before, answer):
  """(log p of the answer, whether greedy), from the definition: one call of the model for each token."""
  c, model, params, v, mesh = setting(kind, folder)
  ids = lambda text: [b + 3 for b in text.encode()]
  kept = before.rstrip()
  if kind == 'given':
    x, y = ids(kept), ids(answer.strip())
  else:
    x, y = ids(kept), ids(before[len(kept):] + answer)
  s0, end, total, greedy = 259, 1, 0.0, True
  if kind.startswith('masked'):
    around = ([260], [end]) if kind == 'masked_ends' else ([], [])
    x = [*around[0], *x]
  for t, token in enumerate(y):
    said = y[:t]
    if kind.startswith('masked'):
      batch, at = row([*x, *said, s0, *y[t + 1:], *around[1]]), len(x) + t
    elif kind == 'document':
      batch, at = row([0, *x, *said]), -1
    elif kind == 'stream':
      batch, at = row([*(x or [end]), *said]), -1
    elif kind == 'prefix':
      batch, at = row([0, *x, *said], 1 + len(x)), -1
    elif kind == 'spans_in_a_row':
      batch, at = row([0, *x, s0, end, s0, *said], len(x) + 3), -1
    elif kind == 'spans':
      batch, at = row([0, s0, *said], encoder=row([*x, s0, end])), -1
    elif kind == 'denoisers':
      batch, at = row([0, *said], encoder=row([*ids('[S2S]'), *x, end])), -1
    elif kind == 'spoilt':
      batch, at = row([0, *x, *said], encoder=row([*x, *[s0] * len(y), end])), -1
    else:
      batch, at = row([0, *said], encoder=row([*x, end])), -1
    with jax.set_mesh(mesh):
      logits = np.asarray(apply(kind, folder)(params, batch)[0, at], np.float64)
    total += logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    greedy &= logits[token] >= logits.max()
  return total, greedy, len(y)


@functools.cache
def apply(kind, folder):
  return jax.jit(setting(kind, folder)[1].apply)


def scorer(kind, folder, devices=1, **mesh):
  c, model, params, vocabulary, mesh = setting(kind, folder, devices, **mesh)
  return score.Scorer(model, params, vocabulary, c, mesh)


@pytest.mark.parametrize('kind', [k for k in KINDS if k != 'long_document'])
def test_a_plain_loop_says_the_same(kind, folder):
  got = scorer(kind, folder).score(QUESTIONS[:3])
  for question, s in zip(QUESTIONS, got):
    logp, greedy, tokens = plainly(kind, folder, *question)
    assert abs(s.logp - logp) < 1e-4 and (s.greedy, s.tokens, s.cut) == (greedy, tokens, 0), (question, s, logp)
  assert len({round(s.logp, 3) for s in got}) == 3


@pytest.mark.parametrize('kind', ['document', 'masked', pytest.param('spans', marks=pytest.mark.slow)])
def test_alone_or_among_others_and_on_any_mesh(kind, folder):
  questions = QUESTIONS + [(f'{w} ' * (i % 7), f'{w}s') for i, w in enumerate(tiny.WORDS)]
  together = [s.logp for s in scorer(kind, folder).score(questions)]
  alone = [scorer(kind, folder).score([q])[0].logp for q in questions[:6]]
  np.testing.assert_allclose(alone, together[:6], atol=1e-5)
  for mesh in (dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, context=2)):
    spread = [s.logp for s in scorer(kind, folder, 8, **mesh).score(questions)]
    np.testing.assert_allclose(spread, together, atol=5e-5)


def test_pieces_of_logits_come_back_in_order(folder, monkeypatch):
  whole = [s.logp for s in scorer('document', folder).score_text(['the a of to in is it for on', 'as'])]
  monkeypatch.setitem(score.loss_lib.LOGITS_BYTES, 'cpu', 8 * 304 * 4)
  pieces = [s.logp for s in scorer('document', folder).score_text(['the a of to in is it for on', 'as'])]
  np.testing.assert_allclose(pieces, whole, atol=1e-5)


def test_greedy_is_true_of_what_the_model_would_say(folder):
  """The answer that always takes the likeliest token is greedy; with its last token changed it is not."""
  c, model, params, v, mesh = setting('document', folder)
  said, text = [], [0, *v.encode('the a')]
  for _ in range(4):
    with jax.set_mesh(mesh):
      said.append(int(np.asarray(apply('document', folder)(params, row(text + said)))[0, -1].argmax()))
  asker, s = ask.Asker(c, v), scorer('document', folder)
  rows = [asker.rows_of_ids(v.encode('the a'), answer) for answer in (said, [*said[:-1], (said[-1] + 1) % 250])]
  assert [bool(s.predictions(r)[0][1].all()) for r in rows] == [True, False]


@pytest.mark.parametrize('kind', [k for k in KINDS if k != 'given'])
@settings(deadline=None, max_examples=25)
@given(n=st.integers(0, 150))
def test_every_token_of_a_text_is_asked_for_once_and_fits(kind, n, folder):
  c, _, _, v, _ = setting(kind, folder)
  asker = ask.Asker(c, v)
  ids = np.random.default_rng(n).integers(3, 250, n).tolist()
  asked = []
  for before, answer in ask.windows(asker, ids):
    rows = asker.rows_of_ids(before, answer)
    assert all(r.cut == 0 and len(r.inputs) <= (asker.target_room if r.encoder else asker.room) for r in rows)
    assert all(len(r.encoder or []) <= asker.room for r in rows)
    asked += [t for r in rows for t in r.targets]
  assert asked == ids


@pytest.mark.parametrize('kind', [k for k in KINDS if k != 'long_document'])
def test_a_question_that_is_too_long_loses_its_beginning(kind, folder):
  c, _, _, v, _ = setting(kind, folder)
  asker = ask.Asker(c, v)
  rows = asker.rows('x' * 100 + 'yz', ' an answer')
  assert sum(r.cut for r in rows) >= 60
  for r in rows:
    assert len(r.inputs) <= (asker.target_room if r.encoder else asker.room) and len(r.encoder or []) <= asker.room
  said = [t for r in rows for t in r.targets]
  assert v.decode(said).strip() == 'an answer'
  whole = rows[0].encoder or rows[0].inputs
  assert 'yz' in v.decode(whole)


def test_text_after_the_gap_counts(folder):
  """A model that sees both sides judges by both; one that reads on predicts what follows too."""
  c, model, params, v, mesh = setting('spans', folder)
  s = scorer('spans', folder)
  got = s.score([('the ', 'a', ' of'), ('the ', 'a', ' to'), ('the ', 'a')])
  assert len({round(x.logp, 4) for x in got}) == 3
  (r,) = s.asker.rows('the', ' a', ' of')
  assert r.encoder == [*v.encode('the'), v.sentinel(0), *v.encode(' of'), 1]
  d = scorer('document', folder)
  both, first, rest = d.score([('the', ' a', ' of'), ('the', ' a'), ('the a', ' of')])
  assert abs(both.logp - first.logp - rest.logp) < 1e-4


def test_a_stream_without_ends_needs_something_to_begin_with(folder):
  c, model, params, v, mesh = setting('stream', folder)
  class NoEnd(vocabulary_lib.Bytes):
    pass
  v = NoEnd(40)
  v.eos_id = None
  with pytest.raises(ConfigError, match='give a prompt to begin with'):
    ask.Asker(c, v).rows('', 'a')


def test_a_model_that_puts_text_in_order_is_refused(folder):
  c = setting('spoilt', folder)[0].copy_and_resolve_references()
  c.objective.name = 'deshuffling'
  with pytest.raises(ConfigError, match='another order'):
    ask.Asker(c, vocabulary_lib.Bytes(40))


@given(n=st.integers(1, 3000), pieces=st.sampled_from([1, 2, 4]))
def test_widths_are_few_and_hold_what_they_must(n, pieces):
  w = ask.width(n, 4096, pieces)
  assert n <= w <= max(16, 1.5 * n) + pieces and w % pieces == 0
  assert len({ask.width(m, 4096) for m in range(1, 3001)}) < 18


def test_a_row_begins_as_rows_of_training_do(folder):
  asker = ask.Asker(*(setting('document', folder)[i] for i in (0, 3)))
  (r,) = asker.rows('ab ', 'c')
  assert dataclasses.astuple(r) == ([0, 100, 101, 35], [2, 3], [35, 102], 0, None, 0)
