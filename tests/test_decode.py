"""Sampling: filters against numpy, greedy text against the full forward."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like import decode, sharding
from t5like.data.vocabulary import Bytes
from t5like.model import transformer
from tests.model.test_transformer import BASE


def kept(logits, top_k, top_p):
  """Indices a row may be sampled from, by sorting."""
  order = np.argsort(-logits, kind='stable')
  if top_k:
    order = order[:top_k]
  p = np.exp(logits[order] - logits[order].max())
  p /= p.sum()
  n = int(np.searchsorted(np.cumsum(p), top_p, side='left')) + 1 if top_p < 1 else len(order)
  return set(order[:n].tolist())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-40, 40), min_size=2, max_size=9, unique=True), st.integers(0, 9),
       st.sampled_from([0.05, 0.31, 0.5, 0.77, 0.9, 1.0]))
def test_filters(logits, top_k, top_p):
  row = np.array(logits, np.float32) / 10
  got = np.asarray(decode.filter_logits(jnp.asarray(row[None]), top_k, top_p))[0]
  assert set(np.flatnonzero(np.isfinite(got)).tolist()) == kept(row, top_k, top_p)
  inside = np.isfinite(got)
  np.testing.assert_array_equal(got[inside], row[inside])


@pytest.fixture(scope='module')
def setting():
  mesh = sharding.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    vocabulary = Bytes()
    model = transformer.build(dataclasses.replace(BASE, vocab_size=384))
    params = jax.jit(model.init)(jax.random.key(3))
    yield model, params, vocabulary


def generate(setting, prompts, context=64, document_mask=True, **kwargs):
  return decode.generate(*setting, prompts, context=context, document_mask=document_mask, **kwargs)


def test_greedy_is_the_argmax_of_the_full_forward(setting):
  model, params, vocabulary = setting
  ids = [0, *vocabulary.encode('abc')]
  apply = jax.jit(model.apply)
  out = []
  for _ in range(6):
    n = len(ids)
    batch = dict(inputs=np.array([ids], np.int32), positions=np.arange(n, dtype=np.int32)[None],
                 segments=np.ones((1, n), np.int32))
    logits = np.array(apply(params, batch)[0, -1])
    logits[[0, 2]] = -np.inf  # padding and unknown are never said
    logits[vocabulary.size:] = -np.inf
    out.append(int(logits.argmax()))
    ids.append(out[-1])
  if vocabulary.eos_id in out:
    out = out[:out.index(vocabulary.eos_id)]
  assert generate(setting, ['abc'], tokens=6, temperature=0) == [vocabulary.decode(out)]


def test_prompts_beside_it_do_not_matter(setting):
  alone = generate(setting, ['hello'], tokens=12, temperature=0)
  assert generate(setting, ['a', 'hello', 'a much longer prompt'], tokens=12, temperature=0)[1] == alone[0]


def test_seeds(setting):
  a, b, again = (generate(setting, ['x'], tokens=20, temperature=1.0, top_k=0, seed=s) for s in (0, 1, 0))
  assert a == again != b


def test_text_goes_on_past_the_context(setting):
  model, params, vocabulary = setting
  (text,) = generate(setting, ['abcdefgh'], context=16, tokens=40, temperature=1.0, seed=2)
  assert isinstance(text, str)
  long = generate(setting, ['abc' * 30], context=16, tokens=5, temperature=0)
  assert long == generate(setting, [('abc' * 30)[-8:]], context=16, tokens=5, temperature=0)


def test_ends_with_the_document(setting):
  """A head that always says EOS: nothing follows."""
  model, params, vocabulary = setting
  w = np.zeros(params['head']['w'].shape, np.float32)
  w[:, vocabulary.eos_id] = 1
  norm = {**params['stack'], 'norm': dict(scale=jnp.zeros(32))}
  # Hidden states of 0 make all logits equal; the likeliest allowed id is then the first one, EOS.
  says_eos = {**params, 'head': dict(w=jnp.asarray(w)), 'stack': norm}
  assert decode.generate(model, says_eos, vocabulary, ['abc', 'd'], context=64, document_mask=True, tokens=8,
                         temperature=0) == ['', '']


def test_a_model_without_beginnings_needs_a_prompt(setting):
  class NoEnd(Bytes):
    eos_id = None
  vocabulary = NoEnd()
  vocabulary.eos_id = None
  with pytest.raises(ValueError, match='give a prompt'):
    decode.generate(*setting[:2], vocabulary, [''], context=16, document_mask=False)
