"""Beam search, greedy text and log-likelihoods beside transformers, on the same weights.

    pip install -e '.[test,parity]' && pytest -m parity
"""
import jax
import numpy as np
import pytest

from t5like import sharding
from t5like.decoding import beam, prompt_rows, sampling
from t5like.evals import score
from t5like.huggingface import model_folders
from t5like.model import models, transformer
from t5like.vocabulary.loading import Bytes
from tests import tiny
from tests.conftest import Package
from tests.parity import cases

pytestmark = pytest.mark.parity
transformers = Package('transformers')
torch = Package('torch')
make_golden = Package('tests.parity.make_golden')

NEW = 10


def loaded(name, tmp_path_factory):
  """(their model, our model, our params, mesh) of the same weights."""
  folder = tmp_path_factory.mktemp(name)
  theirs = make_golden.build(name)
  theirs.generation_config.update(forced_eos_token_id=None, forced_bos_token_id=None)
  theirs.save_pretrained(folder / 'theirs')
  values, params = model_folders.read(folder / 'theirs')
  mesh = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    ours = transformer.build(transformer.ModelConfig.of({**tiny.MODEL.__dict__, **values, 'dropout': 0.0}))
    params = cases.place(ours, params, mesh)
  return theirs, ours, params, mesh


@pytest.fixture(scope='module', params=['llama', 'gpt2', 't5_v1_1'])
def pair(request, tmp_path_factory):
  return loaded(request.param, tmp_path_factory)


def prompt(prompts, paired, mesh):
  """A batch of lists of ids, to be answered or, with an encoder, read by it."""
  made = sharding.place(mesh, prompt_rows.padded([[0]] * len(prompts) if paired else prompts, True, len(prompts)))
  if paired:
    made['encoder'] = sharding.place(mesh, prompt_rows.padded(prompts, False, len(prompts)))
  return made


def generated(theirs, ids, **how):
  """(new tokens [B * returned, NEW], 0 where nothing follows; scores of beams)."""
  given = torch.from_numpy(ids).long()
  paired = theirs.config.is_encoder_decoder
  with torch.no_grad():
    out = theirs.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=NEW,
                          return_dict_in_generate=True, output_scores=True, pad_token_id=0,
                          **dict(decoder_start_token_id=0) if paired else {}, **how)
  new = out.sequences[:, 1 if paired else ids.shape[1]:].numpy()
  new = np.pad(new, ((0, 0), (0, NEW - new.shape[1])))
  return new, out.sequences_scores.numpy() if how.get('num_beams', 1) > 1 else None


@pytest.mark.parametrize('ends', [True, False])
@pytest.mark.parametrize('beams', [2, 4])
def test_beam_search(beams, ends, pair):
  """All beams, in order, with their scores. Where texts end at different lengths alpha is 0, for transformers
  divides by length ** alpha, not by Wu et al.'s penalty; where all are as long, any alpha orders them the same."""
  theirs, ours, params, mesh = pair
  paired, ids = theirs.config.is_encoder_decoder, cases.tokens(3, 8, seed=4)
  # An id that is likely enough to end some of the beams early.
  first, _ = generated(theirs, ids, eos_token_id=None)
  end = int(np.bincount(first[:, 2:6].ravel()).argmax()) if ends else None
  expected, scores = generated(theirs, ids, num_beams=beams, num_return_sequences=beams, length_penalty=0.0,
                               eos_token_id=end, early_stopping=False)
  with jax.set_mesh(mesh):
    tokens, values = beam.search(ours, params, prompt(ids.tolist(), paired, mesh), NEW, beams, 0.0 if ends else 0.6,
                                 end if ends else -1, ())
  tokens, values = np.asarray(tokens), np.asarray(values)
  if not ends:
    values = values * ((5 + NEW) / 6) ** 0.6
  np.testing.assert_allclose(values.ravel(), scores, atol=1e-4)
  for said, wanted in zip(tokens.reshape(-1, NEW), expected):
    if ends and end in wanted:
      wanted = np.where(np.arange(NEW) > wanted.tolist().index(end), end, wanted)
    np.testing.assert_array_equal(said, wanted)
  assert not ends or (tokens[:, :, :-1] == end).any()


def greedy(ours, params, mesh, prompts, paired):
  """What ours says with the keys and values of earlier tokens kept, [B, NEW]; `prompts`: lists of ids."""
  with jax.set_mesh(mesh):
    state = sampling.start(ours, params, prompt(prompts, paired, mesh), NEW)
    said, _ = sampling.more(ours, sampling.Options(temperature=0.0), NEW, params, state, jax.random.key(0),
                            sharding.place(mesh, np.zeros(len(prompts), np.int32)), 0)
  return np.asarray(said)


def test_greedy(pair):
  theirs, ours, params, mesh = pair
  ids = cases.tokens(3, 8, seed=5)
  expected, _ = generated(theirs, ids, eos_token_id=None)
  said = greedy(ours, params, mesh, ids.tolist(), theirs.config.is_encoder_decoder)
  np.testing.assert_array_equal(said, expected)


@pytest.mark.parametrize('name', [
    'llama31', 'llama_dynamic', 'llama_longrope', 'mistral', 'qwen2_window', 'qwen3', 'smollm3', 'smollm3_window',
    'olmo3', 'gemma2', 'gemma3', 'phi3_part', 'mixtral', 'qwen2_moe',
    'qwen3_moe', 'olmoe', 'switch', 'switch_capacity', 'mt5', 'umt5', 'bart', 'mbart'])
def test_greedy_beyond_windows(name, tmp_path_factory):
  """Prompts of several lengths in one batch, each as transformers answers it alone, and as whole rows say."""
  theirs, ours, params, mesh = loaded(name, tmp_path_factory)
  paired = theirs.config.is_encoder_decoder
  lengths = [8, 8, 8] if name in cases.BY_LONGEST_ROW else [8, 3, 6]
  if name == 'llama_dynamic':  # transformers keeps the rates of the longest text that it has seen
    lengths = [8]
  prompts = [cases.tokens(1, length, seed=length + n)[0].tolist() for n, length in enumerate(lengths)]
  expected = [generated(theirs, np.array([ids], np.int32), eos_token_id=None)[0][0] for ids in prompts]
  said = greedy(ours, params, mesh, prompts, paired)
  np.testing.assert_array_equal(said, expected)
  if paired or name == 'llama_dynamic':  # whose keys of earlier tokens have the rates of then
    return
  row = np.array([prompts[0] + said[0].tolist()], np.int32)
  with jax.set_mesh(mesh):
    logits = np.asarray(jax.jit(ours.apply)(params, sharding.place(mesh, cases.row(row))))
  np.testing.assert_array_equal(logits[0, 7:-1].argmax(-1), said[0])


QUESTIONS = [('the a of', ' to in'), ('is it for', 'x'), ('on', ' as with that')]


@pytest.mark.parametrize('kind', ['document', 'given'])
def test_log_likelihoods_of_exported_models(kind, tmp_path):
  """What our scorer says of a model is what transformers' logits say of its export."""
  changes = dict(document=dict(), given=dict(
      model=dict(name='encoder_decoder', position='relative', scale_attention=False, tie_embeddings=False,
                 activation='geglu', num_kv_heads=0, vocab_size=304),
      objective=dict(name='seq2seq'), data=dict(inputs='{text}', targets='{text}', target_len=32, packing='best_fit')))
  c = tiny.config(tmp_path, vocabulary=dict(sentinels=40), **{**dict(model=dict(vocab_size=304)), **changes[kind]})
  v = Bytes(40)
  c = models.with_vocabulary(c, v)
  mesh = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    model, _ = models.build_model(c)
    params = jax.jit(model.init)(jax.random.key(2))
  model_folders.write(tmp_path / 'out', c.model.to_dict(), params)
  got = score.Scorer(model, params, v, c, mesh).score(QUESTIONS)
  auto = transformers.AutoModelForCausalLM if kind == 'document' else transformers.AutoModelForSeq2SeqLM
  theirs = auto.from_pretrained(tmp_path / 'out').eval()
  for (before, answer), s in zip(QUESTIONS, got):
    x, y = list(v.encode(before)), list(v.encode(answer if kind == 'document' else answer.strip()))
    with torch.no_grad():
      if kind == 'document':
        logits = theirs(torch.tensor([[0, *x, *y]])).logits[0, len(x):-1]
      else:
        logits = theirs(input_ids=torch.tensor([[*x, 1]]), decoder_input_ids=torch.tensor([[0, *y[:-1]]])).logits[0]
    logp = torch.log_softmax(logits, -1)[torch.arange(len(y)), torch.tensor(y)].sum().item()
    assert abs(s.logp - logp) < 1e-4 and s.tokens == len(y)


def test_pseudo_log_likelihoods_of_an_imported_model(tmp_path):
  """A BERT of theirs: each token of the answer masked by itself, log p from transformers' logits."""
  theirs = make_golden.build('bert')
  theirs.save_pretrained(tmp_path / 'theirs')
  values, params = model_folders.read(tmp_path / 'theirs')
  c = tiny.config(tmp_path, vocabulary=dict(sentinels=4), objective=dict(name='masked_lm'),
                  model=dict(name='encoder', vocab_size=264)).copy_and_resolve_references()
  with c.unlocked():
    c.model.update(values)
  mesh = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    model = transformer.build(transformer.ModelConfig.of(c.model))
    params = cases.place(model, params, mesh)
  v = Bytes(4)
  v.mask_id = 7
  scorer = score.Scorer(model, params, v, c, mesh)
  before, answer, after = ([int(i) for i in cases.tokens(1, n, seed=n)[0]] for n in (5, 4, 3))
  (row_sum,) = scorer.score_rows([scorer.asker.rows_of_ids(before, answer, after)])
  total = 0.0
  for t, token in enumerate(answer):
    ids = torch.tensor([[*before, *answer[:t], 7, *answer[t + 1:], *after]])
    with torch.no_grad():
      total += torch.log_softmax(theirs(ids).logits[0, len(before) + t], -1)[token].item()
  assert abs(row_sum.logp - total) < 1e-4


@pytest.mark.parametrize('top_p', [0.05, 0.3, 0.5, 0.8, 0.95])
def test_as_many_tokens_as_transformers_keeps(top_p):
  """Where no sum of probabilities is top_p itself, which rounding decides there; of equals, ours keeps the first."""
  rng = np.random.default_rng(0)
  logits = rng.integers(0, 6, (64, 50)).astype(np.float32)  # many ties
  theirs = transformers.TopPLogitsWarper(top_p)(None, torch.tensor(logits)).numpy()
  ours = np.asarray(sampling.filter_logits(jax.numpy.asarray(logits), top_p=top_p))
  np.testing.assert_array_equal(np.isfinite(ours).sum(-1), np.isfinite(theirs).sum(-1))
  np.testing.assert_array_equal(np.sort(ours, -1), np.sort(theirs, -1))
  for row, kept in zip(logits, np.isfinite(ours)):
    least = row[kept].min()
    equals = np.flatnonzero(row == least)
    assert kept[equals].tolist() == sorted(kept[equals].tolist(), reverse=True)


def test_top_k_keeps_k_where_transformers_keeps_all_equals():
  logits = np.zeros((1, 5), np.float32)
  assert np.isfinite(transformers.TopKLogitsWarper(2)(None, torch.tensor(logits)).numpy()).sum() == 5
  assert np.isfinite(np.asarray(sampling.filter_logits(jax.numpy.asarray(logits), top_k=2))).sum() == 2
