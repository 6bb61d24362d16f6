"""Our models and tokenizers beside those of transformers, in one process.

    pip install -e '.[test,parity]' && pytest -m parity
"""
import json

import jax
import numpy as np
import pytest

from t5like.config import base
from t5like.decoding import trained_model
from t5like.huggingface import model_config, model_folders, runs
from t5like.huggingface.families import FAMILIES
from t5like.training import loop
from t5like.vocabulary import loading as vocabulary_lib
from tests import tiny
from tests.conftest import Package
from tests.parity import cases

pytestmark = pytest.mark.parity
transformers = Package('transformers')
torch = Package('torch')
make_golden = Package('tests.parity.make_golden')

CLOSE = dict(rtol=0, atol=1e-4)


@pytest.fixture(autouse=True)
def quiet():
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()


def load_strictly(folder):
  """transformers' model of a folder, when not a weight is missing, too many, or of another shape."""
  kind = json.loads((folder / 'config.json').read_text())['architectures'][0]
  model, about = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
  assert not any(about[what] for what in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), about
  return model.eval()


def same_weights(a, b):
  a, b = a.state_dict(), b.state_dict()
  assert a.keys() == b.keys()
  for key in a:
    assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize('name', cases.CASES)
def test_both_ways(name, tmp_path):
  """Their weights here, and back there: the same logits, the same bits; rows end in padding."""
  model = make_golden.build(name)
  model.save_pretrained(tmp_path / 'theirs')
  values, params = model_folders.read(tmp_path / 'theirs')
  rows = [cases.tokens(1, n, seed=n)[0] for n in (9, 5)]
  batch = cases.row(np.zeros((2, 9), np.int32))
  for i, row in enumerate(rows):
    batch['inputs'][i, :len(row)], batch['segments'][i, len(row):] = row, 0
  there = batch['segments'] > 0
  if not cases.is_paired(name):
    # RoBERTa tells positions by its padding id, 1; the others are told by the mask.
    expected = make_golden.theirs(model, np.where(there, batch['inputs'], 1), mask=there)[there]
    np.testing.assert_allclose(cases.logits(values, params, batch)[there], expected, **CLOSE)
  else:
    decoder = cases.tokens(2, 7, seed=3)
    expected = make_golden.theirs(model, batch['inputs'], decoder, mask=there)
    np.testing.assert_allclose(
        cases.logits(values, params, cases.row(decoder, encoder=batch)), expected, **CLOSE)
  model_folders.write(tmp_path / 'ours', values, params)
  back = load_strictly(tmp_path / 'ours')
  if name not in cases.RENAMED:
    same_weights(model, back)
  paired = (cases.tokens(2, 7),) if cases.is_paired(name) else ()
  inputs = cases.tokens(2, 9)
  close = 1e-5 if name in cases.ROUNDED else 0
  np.testing.assert_allclose(make_golden.theirs(back, inputs, *paired), make_golden.theirs(model, inputs, *paired),
                             rtol=0, atol=close)
  again, params_again = model_folders.read(tmp_path / 'ours')
  assert again == values and jax.tree.all(jax.tree.map(np.array_equal, params, params_again))


@pytest.mark.parametrize('name', sorted(cases.CASES.keys() - cases.BY_LONGEST_ROW - cases.BY_ROW))
def test_packed_rows(name, tmp_path):
  """Texts, shorter and longer than windows, side by side in a row are to us what each alone is to transformers."""
  model = make_golden.build(name)
  model.save_pretrained(tmp_path)
  values, params = model_folders.read(tmp_path)
  texts = [cases.tokens(1, n, seed=n)[0] for n in (7, 11, 3)]
  batch = cases.pack(texts, 24)
  answers = [None] * 3
  if cases.is_paired(name):
    answers = [cases.tokens(1, n, seed=100 + n)[0] for n in (4, 2, 6)]
    batch = dict(cases.pack(answers, 14), encoder=batch)
  got, at = cases.logits(values, params, batch)[0], 0
  for text, answer in zip(texts, answers):
    pair = () if answer is None else (answer[None],)
    expected = make_golden.theirs(model, text[None], *pair)[0]
    np.testing.assert_allclose(got[at:at + len(expected)], expected, **CLOSE)
    at += len(expected)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_in_many_files(dtype, tmp_path):
  model = make_golden.build('llama').to(getattr(torch, dtype))
  model.save_pretrained(tmp_path, max_shard_size='20KB')
  assert len(list(tmp_path.glob('*.safetensors'))) > 2
  _, params = model_folders.read(tmp_path)
  model_folders.write(tmp_path / 'out', model_config.to_model(model.config.to_dict()), params)
  back = load_strictly(tmp_path / 'out')
  assert back.dtype == torch.float32
  same_weights(model.float(), back)


READABLE = dict(  # where transformers' defaults are refused
    electra=dict(embedding_size=256),
    switch_transformers=dict(num_sparse_encoder_layers=6, num_sparse_decoder_layers=6))


@pytest.mark.parametrize('name', FAMILIES)
def test_what_a_config_may_leave_out(name):
  config = transformers.AutoConfig.for_model(name, **READABLE.get(name, {}))
  stack = config.decoder if FAMILIES[name].is_nested else config
  known = {k: v for k, v in FAMILIES[name].defaults.items() if v is not None and hasattr(stack, k)}
  assert len(known) >= 4 and {k: getattr(stack, k) for k in known} == known
  assert model_config.to_model(config.to_dict())['num_layers'] == stack.num_hidden_layers


def test_v1_1_stays_untied_and_v1_0_tied(tmp_path):
  for name, tied in (('t5', True), ('t5_v1_1', False)):
    make_golden.build(name).save_pretrained(tmp_path / name)
    assert model_folders.read(tmp_path / name)[0]['tie_embeddings'] == tied
  fresh = transformers.T5ForConditionalGeneration(transformers.T5Config(**cases.CASES['t5_v1_1'][2]))
  fresh.save_pretrained(tmp_path / 'fresh')  # tied, yet not scaled
  values, params = model_folders.read(tmp_path / 'fresh')
  assert values['tie_embeddings'] and values['head'] == 'linear'
  inputs, decoder = cases.tokens(1, 6), cases.tokens(1, 4)
  np.testing.assert_allclose(cases.logits(values, params, cases.row(decoder, encoder=cases.row(inputs))),
                             make_golden.theirs(fresh.eval(), inputs, decoder), **CLOSE)


def test_published_umt5_is_untied_and_not_scaled(tmp_path):
  """transformers 5 divides by sqrt(d_model) before a head of its own too, which version 4 and the training did not."""
  model = make_golden.build('umt5')
  model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn_like(model.lm_head.weight))
  model.save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(dict(json.loads(path.read_text()), tie_word_embeddings=False)))
  values, params = model_folders.read(tmp_path)
  assert not values['tie_embeddings'] and values['head'] == 'linear'
  inputs, decoder = cases.tokens(1, 6), cases.tokens(1, 4)
  np.testing.assert_allclose(cases.logits(values, params, cases.row(decoder, encoder=cases.row(inputs))),
                             make_golden.theirs(model, inputs, decoder) * 36 ** 0.5, **CLOSE)


# --- Tokenizers -----------------------------------------------------------------------------------

TEXTS = ['The quick brown fox.', 'def f(x):\n  return x[1:]\n\n\n', '  two  spaces  ',
         'naïve 3.14 € 日本', 'a\tb', 'line\n']
STYLES = dict(llama='document', olmo2='stream', gpt2='document', gpt_neox='pair', bert='fill_row', roberta='fill_row',
              t5='encoder')
KINDS = [
    dict(name='sentencepiece', algorithm='unigram', normalization='nmt_nfkc', size=400, sentinels=8),
    dict(name='sentencepiece', algorithm='bpe', normalization='identity', size=400, sentinels=8),
    dict(name='bytes', sentinels=4), dict(name='characters', sentinels=2)]


@pytest.mark.parametrize('kind', KINDS, ids=lambda k: '-'.join(map(str, k.values())))
def test_tokenizers(kind, tmp_path):
  spec = base().vocabulary
  spec.update(kind)
  text = [*TEXTS, *(open(f, encoding='utf-8').read() for f in (__file__, make_golden.__file__, cases.__file__))]
  vocabulary = vocabulary_lib.train(spec, text, tmp_path / 'vocabulary')
  for family, style in STYLES.items():
    name = dict(t5='t5_v1_1').get(family, family)
    folder = tmp_path / family
    make_golden.build(name).save_pretrained(folder / 'theirs')
    values, params = model_folders.read(folder / 'theirs')
    notes = model_folders.write(folder / 'ours', values, params, vocabulary, style=style, length=40)
    assert not [note for note in notes if 'tokenizer' in note]
    theirs = transformers.AutoTokenizer.from_pretrained(folder / 'ours')
    end, cls, ids = [vocabulary.eos_id], [vocabulary.cls_id], lambda text: vocabulary.encode(text).tolist()
    around = dict(document=([0], []), stream=([], []), pair=([0], end), fill_row=(cls, end), encoder=([], end))[style]
    for text in TEXTS:
      assert theirs.encode(text, add_special_tokens=False) == ids(text), (family, text)
      assert theirs(text).input_ids == around[0] + ids(text) + around[1], (family, text)
      assert theirs.decode(ids(text)) == vocabulary.decode(ids(text)), (family, text)
    assert (theirs.pad_token_id, theirs.eos_token_id) == (0, 1)
    assert theirs.convert_tokens_to_ids('<extra_id_0>') == vocabulary.sentinel(0)
    assert theirs.encode('<extra_id_1>', add_special_tokens=False) == [vocabulary.sentinel(1)]
    assert len(theirs) == vocabulary.size


def test_a_tokenizer_of_theirs_goes_back_as_it_was(tmp_path):
  import tokenizers
  inside = tokenizers.Tokenizer(tokenizers.models.BPE())
  inside.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  inside.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  inside.train_from_iterator(TEXTS * 9, tokenizers.trainers.BpeTrainer(
      vocab_size=300, special_tokens=['<|endoftext|>'], initial_alphabet=alphabet))
  inside.save(str(tmp_path / 'tokenizer.json'))
  spec = base().vocabulary
  spec.update(name='huggingface', path=str(tmp_path / 'tokenizer.json'))
  vocabulary = vocabulary_lib.load(spec, spec.path)
  make_golden.build('gpt2').save_pretrained(tmp_path / 'theirs')
  values, params = model_folders.read(tmp_path / 'theirs', vocab_size=300)
  model_folders.write(tmp_path / 'ours', values, params, vocabulary, style='stream')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'ours')
  assert all(theirs(text).input_ids == vocabulary.encode(text).tolist() for text in TEXTS)
  assert theirs.eos_token == '<|endoftext|>' and load_strictly(tmp_path / 'ours').config.vocab_size == 300


def test_a_trained_run_says_the_same_there(tmp_path):
  c = tiny.config(tmp_path)
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  assert runs.export_run(tmp_path / 'run', tmp_path / 'out') == []
  ours, model = trained_model.load(tmp_path / 'run'), load_strictly(tmp_path / 'out')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  banned = [i for i in range(264) if i >= ours.vocabulary.size or i in (0, 2)]
  for prompt in ('the ', 'is it '):
    ids = model.generate(**tokenizer(prompt, return_tensors='pt'), max_new_tokens=12, do_sample=False,
                         suppress_tokens=banned)
    assert ids[0, 0] == 0  # begins as texts of training do
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == prompt + ours.generate(
        [prompt], tokens=12, temperature=0)[0]
