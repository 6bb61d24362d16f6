"""Beam search against all answers there are, scored one by one."""
import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from t5like import sharding
from t5like.decoding import beam, decode, prompt_rows
from t5like.model import transformer
from t5like.vocabulary.loading import Bytes
from tests.tiny import MODEL

V, EOS, LONGEST = 5, 1, 4


@functools.cache
def setting(name, seed=3, **mesh):
  devices = int(np.prod(list(mesh.values()) or [1]))
  mesh = sharding.make_mesh(mesh or dict(fsdp=1), jax.devices()[:devices])
  with jax.set_mesh(mesh):
    changes = dict(position='relative', init='t5') if name == 'encoder_decoder' else {}
    vocab = 8 if len(mesh.devices.flat) > 1 else V
    model = transformer.build(dataclasses.replace(MODEL, name=name, vocab_size=vocab, **changes))
    layout = jax.tree.map(lambda x: x.sharding, sharding.abstract(lambda: model.init(jax.random.key(0)), mesh))
    params = jax.jit(model.init, out_shardings=layout)(jax.random.key(seed))
  return model, jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, params), mesh


def prompts(texts, name):
  """Prompts that end together; those of encoder-decoders are in the encoder."""
  rows = len(texts)
  if name == 'encoder_decoder':
    return dict(prompt_rows.padded([[0]] * rows, True, rows), encoder=prompt_rows.padded(texts, False, rows))
  return prompt_rows.padded([[0, *t] for t in texts], True, rows)


def search(name, texts, beams, alpha, eos_id=EOS, banned=(), new=LONGEST, **mesh):
  model, params, mesh = setting(name, **mesh)
  with jax.set_mesh(mesh):
    batch = jax.tree.map(lambda x: sharding.place(mesh, x), prompts(texts, name))
    found = beam.search(model, params, batch, new, beams, alpha, eos_id, banned)
  return [np.asarray(x) for x in found]


def row(ids):
  """A batch of one text and padding, always of one shape, for which a model is compiled once."""
  length = LONGEST + 6
  inputs, segments = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
  inputs[0, :len(ids)] = ids
  segments[0, :len(ids)] = 1
  return dict(inputs=inputs, positions=np.arange(length, dtype=np.int32)[None], segments=segments)


@functools.cache
def logp(name, text, said):
  """log p of each next token after `said`, by the full forward pass."""
  model, params, mesh = setting(name)
  ids = [0, *said] if name == 'encoder_decoder' else [0, *text, *said]
  batch = row(ids)
  if name == 'encoder_decoder':
    batch['encoder'] = row(text)
  with jax.set_mesh(mesh):
    logits = np.asarray(apply(name)(params, batch)[0, len(ids) - 1], np.float64)
  return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@functools.cache
def apply(name):
  return jax.jit(setting(name)[0].apply)


def every_answer(name, text, alpha, eos_id=EOS):
  """[(score, answer)] of all answers: those that end within LONGEST tokens, and those cut off there; best first."""
  found = []
  for n in range(1, LONGEST + 1):
    for said in itertools.product(range(V), repeat=n):
      ended = said[-1] == eos_id
      if eos_id in said[:-1] or n < LONGEST and not ended:
        continue
      total = sum(logp(name, text, said[:t])[said[t]] for t in range(n))
      found.append((total / ((5 + n) / 6) ** alpha, said))
  return sorted(found, reverse=True)


@pytest.mark.parametrize('alpha', [0.0, 0.6, 2.0])
@pytest.mark.parametrize('name', ['decoder', 'encoder_decoder'])
def test_wide_enough_it_finds_the_best_of_all_answers(name, alpha):
  """100 beams hold all that is 3 tokens long, and more than the 20 best of 4; prompts of two lengths."""
  texts = [(2, 3), (4, 2, 3, 3, 2)]
  tokens, scores = search(name, texts, 100, alpha)
  for text, answers, values in zip(texts, tokens.tolist(), scores):
    expected = every_answer(name, text, alpha)[:20]
    np.testing.assert_allclose(values[:20], [score for score, _ in expected], atol=2e-4)
    for answer, value, (score, said) in zip(answers, values, expected):
      assert answer == list(said) + [EOS] * (LONGEST - len(said)) or abs(value - score) < 1e-4
    assert answers[0] == list(expected[0][1]) + [EOS] * (LONGEST - len(expected[0][1]))


def test_the_penalty_decides_between_short_and_long():
  best = lambda alpha: [len(every_answer('decoder', (2, 3), alpha)[k][1]) for k in range(5)]
  assert np.mean(best(5.0)) > np.mean(best(0.0))
  length = lambda alpha: (search('decoder', [(2, 3)], 100, alpha)[0][0, :5] != EOS).sum()
  assert length(5.0) > length(0.0)


@pytest.mark.parametrize('beams', [1, 2, 3])
def test_narrow_beams_score_what_they_say(beams):
  """Whatever is found: its score is its own, no answer comes twice, and one beam without ends is greedy."""
  texts = [(2, 3), (4,), (3, 3, 3)]
  tokens, scores = search('decoder', texts, beams, 0.6)
  for text, answers, values in zip(texts, tokens.tolist(), scores):
    known = {tuple(said) + (EOS,) * (LONGEST - len(said)): score for score, said in every_answer('decoder', text, 0.6)}
    np.testing.assert_allclose(values, [known[tuple(answer)] for answer in answers], atol=2e-4)
    assert len(set(map(tuple, answers))) == beams and sorted(values, reverse=True) == values.tolist()
  if beams == 1:
    tokens, _ = search('decoder', texts, 1, 0.0, eos_id=-1)
    for text, (answer,) in zip(texts, tokens.tolist()):
      said = ()
      for _ in range(LONGEST):
        said += (int(logp('decoder', text, said).argmax()),)
      assert answer == list(said)


@pytest.mark.parametrize('beams, first', [(1, [0, 0, 0, 0]), (2, [EOS] * 4), (3, [EOS] * 4)])
def test_of_equally_likely_ways_to_go_on_the_first_are_kept(beams, first):
  """Every token has p = 1/5: one beam takes token 0, as greedy text does; the end, token 1, is among two."""
  model, params, mesh = setting('decoder')
  with jax.set_mesh(mesh):
    batch = jax.tree.map(lambda x: sharding.place(mesh, x), prompts([(2, 3)], 'decoder'))
    tokens, scores = beam.search(model, jax.tree.map(lambda x: 0 * x, params), batch, LONGEST, beams, 0.0, EOS, ())
  assert np.asarray(tokens)[0, 0].tolist() == first
  length = 4 if beams == 1 else 1
  assert np.asarray(scores)[0, 0] == pytest.approx(length * np.log(1 / V), abs=1e-5)


def test_banned_ids_are_never_said():
  tokens, _ = search('decoder', [(2, 3)], 4, 0.6, banned=(0, 2))
  assert not {0, 2} & set(tokens.flat)


@pytest.mark.parametrize('name', ['decoder', 'encoder_decoder'])
def test_any_mesh_says_the_same(name):
  texts = [(2, 3), (4,), (3, 3, 3), (2, 2)] * 2
  tokens, scores = search(name, texts, 3, 0.6, data=2, fsdp=2, tensor=2)
  model, params, mesh = setting(name, data=2, fsdp=2, tensor=2)
  one = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
  with jax.set_mesh(one):
    model = transformer.build(model.config)
    params = jax.tree.map(lambda x: jax.device_put(np.asarray(x), jax.sharding.NamedSharding(one, x.sharding.spec)),
                          params)
    batch = jax.tree.map(lambda x: sharding.place(one, x), prompts(texts, name))
    plain = beam.search(model, params, batch, LONGEST, 3, 0.6, EOS, ())
  assert mesh.size == 8
  np.testing.assert_array_equal(tokens, plain[0])
  np.testing.assert_allclose(scores, plain[1], atol=1e-4)


def test_texts_are_searched_for_too():
  """The way from text to text: beams as the command line asks for them, beside other prompts or alone."""
  mesh = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    model = transformer.build(dataclasses.replace(MODEL, vocab_size=384))
    params = jax.jit(model.init)(jax.random.key(3))
    say = functools.partial(decode.generate, model, params, Bytes(), style='document', context=32, tokens=6)
    both = say(['abc', 'a longer one'], beams=3)
    assert say(['abc'], beams=3) == both[:1] and both != say(['abc', 'a longer one'], temperature=0.0)
    with pytest.raises(decode.PromptError, match='leaves no room'):
      say(['x' * 40], beams=2)
