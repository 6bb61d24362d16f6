"""Sampling: filters against numpy, greedy text against the full forward."""
import dataclasses
import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like import sharding
from t5like.decoding import decode, prompt_rows, sampling
from t5like.model import transformer
from t5like.vocabulary.loading import Bytes
from tests.tiny import MODEL

LENGTH = 32  # of rows, in tokens


@pytest.fixture(scope='module')
def setting():
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    vocabulary = Bytes()
    model = transformer.build(dataclasses.replace(MODEL, vocab_size=384))
    params = jax.jit(model.init)(jax.random.key(3))
    yield model, params, vocabulary


def kept(weights, top_k, top_p):
  """Indices a row may be sampled from, by rank: exactly, from whole numbers that probabilities are proportional to."""
  order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:top_k or None]
  whole, share, count = sum(weights[i] for i in order), fractions.Fraction(str(top_p)), 0
  while count < len(order) and (not count or sum(weights[i] for i in order[:count]) < share * whole):
    count += 1
  return sorted(order[:count])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(0, 12),
       st.sampled_from([0.05, 0.2, 0.31, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0]))
def test_filters_keep_as_many_by_rank_as_they_should(weights, top_k, top_p):
  """Equal probabilities, and those that add up to exactly top_p, included."""
  row = np.log(np.array(weights, np.float32))
  filtered = np.asarray(sampling.filter_logits(jnp.asarray(row[None]), top_k, top_p))[0]
  inside = np.isfinite(filtered)
  assert np.flatnonzero(inside).tolist() == kept(weights, top_k, top_p)
  np.testing.assert_array_equal(filtered[inside], row[inside])


@pytest.mark.parametrize('weights, top_k, top_p, expected', [
    ([3, 1, 1, 5], 0, 0.8, [0, 3]), ([3, 1, 1, 5], 0, 0.81, [0, 1, 3]), ([3, 1, 1, 5], 0, 0.5, [3]),
    ([3, 1, 1, 5], 0, 0.9, [0, 1, 3]), ([1, 1, 1], 2, 1.0, [0, 1]), ([1, 2, 2, 2], 2, 1.0, [1, 2]),
    ([1, 1, 1, 1], 0, 0.5, [0, 1]), ([1, 1, 1, 1], 0, 1e-9, [0]), ([2, 7, 7, 7, 2], 3, 0.6, [1, 2]),
    ([1] * 10, 0, 0.3, [0, 1, 2])])
def test_filters_of_equals(weights, top_k, top_p, expected):
  row = np.log(np.array([weights, weights[::-1]], np.float32))
  first, _ = np.isfinite(np.asarray(sampling.filter_logits(jnp.asarray(row), top_k, top_p)))
  assert np.flatnonzero(first).tolist() == expected == kept(weights, top_k, top_p)


@pytest.mark.parametrize('temperature', [1e-45, 1e-10, 1e-3])
def test_no_temperature_is_too_low(temperature, setting):
  logits = np.array([[-700.0, 3.0, 900.0, 899.0], [5.0, 5.0, -1e9, -np.inf]], np.float32)
  logits, seeds = sharding.place(prompt_rows.mesh_in_force(), (logits, np.arange(2, dtype=np.int32)))
  how = sampling.Options(temperature, 0, 1.0)
  pick = jax.jit(sampling.pick, static_argnums=1)
  ids = np.stack([pick(logits, how, jax.random.key(s), seeds, 0) for s in range(12)])
  assert set(ids[:, 0]) == {2} and set(ids[:, 1]) == {0, 1}


def generate(setting, prompts, context=64, style='document', **kwargs):
  return decode.generate(*setting, prompts, context=context, style=style, **kwargs)


def argmax(vocabulary, logits_V):
  logits_V = np.array(logits_V)
  logits_V[[0, 2]] = -np.inf  # padding and unknown are never said
  logits_V[vocabulary.size:] = -np.inf
  return int(logits_V.argmax())


def row(ids, **more):
  """A batch of one text and padding, always of one shape, for which a model is compiled once."""
  inputs, segments = np.zeros((1, LENGTH), np.int32), np.zeros((1, LENGTH), np.int32)
  inputs[0, :len(ids)] = ids
  segments[0, :len(ids)] = 1
  return dict(inputs=inputs, positions=np.arange(LENGTH, dtype=np.int32)[None], segments=segments, **more)


def text_of(vocabulary, out):
  return vocabulary.decode(out[:out.index(vocabulary.eos_id)] if vocabulary.eos_id in out else out)


@pytest.mark.parametrize('style', ['document', 'prefix', 'pair'])
def test_greedy_is_the_argmax_of_the_full_forward(style, setting):
  model, params, vocabulary = setting
  start = [0, *vocabulary.encode('abc'), *([1] if style == 'pair' else [])]
  apply, out = jax.jit(model.apply), []
  for _ in range(6):
    batch = row(start + out)
    if style != 'document':
      batch['prefix'] = np.arange(LENGTH)[None] < len(start)
    out.append(argmax(vocabulary, apply(params, batch)[0, len(start) + len(out) - 1]))
  assert generate(setting, ['abc'], tokens=6, temperature=0, style=style) == [text_of(vocabulary, out)]


@pytest.fixture(scope='module')
def other():
  """An encoder-decoder with relative positions, and an encoder, both random, of bytes with sentinels."""
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    vocabulary, models = Bytes(sentinels=4), {}
    for name, changes in dict(encoder_decoder=dict(position='relative', init='t5'), encoder=dict(head='mlm')).items():
      model = transformer.build(dataclasses.replace(MODEL, name=name, vocab_size=384, **changes))
      models[name] = model, jax.jit(model.init)(jax.random.key(3)), vocabulary
    yield models


def test_an_encoder_decoder_answers_what_its_full_forward_says(other):
  model, params, vocabulary = other['encoder_decoder']
  prompts, apply = ['ab<extra_id_0>c', 'a longer one <extra_id_0> of text'], jax.jit(model.apply)
  said = generate(other['encoder_decoder'], prompts, tokens=6, temperature=0, style='encoder', targets=20)
  for prompt, answer in zip(prompts, said):
    inputs = [*vocabulary.encode_marked(prompt), 1]
    assert vocabulary.sentinel(0) in inputs
    out = []
    for _ in range(6):
      out.append(argmax(vocabulary, apply(params, row([0, *out], encoder=row(inputs)))[0, len(out)]))
    assert answer == text_of(vocabulary, out)


def test_an_encoder_fills_the_surest_mask_first(other):
  model, params, vocabulary = other['encoder']
  apply, ids = jax.jit(model.apply), list(vocabulary.encode_marked('a<mask>cd<mask>f'))
  masks = [t for t, i in enumerate(ids) if i == vocabulary.mask_id]
  assert len(masks) == 2
  while masks:
    logits_TV = np.array(apply(params, row(ids))[0, :len(ids)])
    logits_TV[:, vocabulary.size:] = -np.inf
    logits_TV[:, vocabulary.special_ids] = -np.inf
    p_TV = np.asarray(jax.nn.softmax(logits_TV, -1))
    t = max(masks, key=lambda t: p_TV[t].max())
    ids[t] = int(p_TV[t].argmax())
    masks.remove(t)
  said = generate(other['encoder'], ['a<mask>cd<mask>f', '<mask>'], style='fill')
  assert said[0] == vocabulary.decode(ids) and '<mask>' not in said[1]
  with pytest.raises(ValueError, match='has no <mask>'):
    generate(other['encoder'], ['abc'], style='fill')


def test_a_prompt_that_fills_the_context_is_refused_where_it_cannot_slide(setting):
  with pytest.raises(ValueError, match='leaves no room for an answer in the 16'):
    generate(setting, ['x' * 20], context=16, style='pair')


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
  w = np.zeros(params['head']['out']['w'].shape, np.float32)
  w[:, vocabulary.eos_id] = 1
  norm = {**params['stack'], 'norm': dict(scale=jnp.zeros(32))}
  # Hidden states of 0 make all logits equal; the likeliest allowed id is then the first one, EOS.
  says_eos = {**params, 'head': dict(out=dict(w=jnp.asarray(w))), 'stack': norm}
  assert generate((model, says_eos, vocabulary), ['abc', 'd'], tokens=8, temperature=0) == ['', '']


def test_a_model_without_beginnings_needs_a_prompt(setting):
  class NoEnd(Bytes):
    eos_id = None
  vocabulary = NoEnd()
  vocabulary.eos_id = None
  with pytest.raises(ValueError, match='give a prompt'):
    generate((*setting[:2], vocabulary), [''], context=16, style='stream')


def test_answers_end_before_sentinels_that_were_not_asked_for(setting, monkeypatch):
  """A model that restores spans goes on with spans that the prompt does not have."""
  v = Bytes(100)
  setting = (*setting[:2], v)
  s = v.sentinel
  said = [s(0), *b'a', s(1), *b'bc', s(2), *b'd', s(3)]
  ids = [i + 3 if i < 128 else i for i in said]  # bytes begin at 3
  monkeypatch.setattr(decode, '_sampled', lambda *a: [[ids] * 3])
  texts = generate(setting, ['x<extra_id_0>y', '<extra_id_0>y<extra_id_1>', 'none'], style='pair', tokens=len(ids))
  assert texts == ['<extra_id_0>a', '<extra_id_0>a<extra_id_1>bc',
                   '<extra_id_0>a<extra_id_1>bc<extra_id_2>d<extra_id_3>']
