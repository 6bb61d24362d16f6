"""Special tokens as transformers reads them from the same folders, and text that begins and ends with them.

    pip install -e '.[test,parity]' && pytest -m parity
"""
import dataclasses
import json

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from t5like import sharding
from t5like.config import base
from t5like.config.values import DEFAULTS
from t5like.decoding import trained_model
from t5like.errors import ConfigError
from t5like.huggingface import folder_tokenizers, model_config, model_folders, runs
from t5like.model import transformer
from t5like.training import loop
from t5like.vocabulary import loading as vocabulary_lib, special_tokens
from tests import folders, tiny
from tests.conftest import Package
from tests.parity import cases

pytestmark = pytest.mark.parity
transformers = Package('transformers')
torch = Package('torch')
make_golden = Package('tests.parity.make_golden')

NEW = 16
PROMPTS = ('the quick ', 'of amber', 'a')
LLAMA = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, initializer_range=0.3)


@pytest.fixture(autouse=True)
def quiet():
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()


def tokenizer_of(made, **names):
  return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def llama(folder, tokenizer, **more):
  torch.manual_seed(0)
  config = transformers.LlamaConfig(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
                                    eos_token_id=tokenizer.eos_token_id, **LLAMA, **more)
  transformers.LlamaForCausalLM(config).save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return folder


def answered(folder, prompts):
  """What transformers says, with the special tokens that its tokenizer puts around prompts."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  return [tokenizer.decode(ids, skip_special_tokens=True) for ids in answered_ids(folder, prompts)]


def answered_ids(folder, prompts):
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  answers = []
  for prompt in prompts:
    asked = tokenizer(prompt, return_tensors='pt').input_ids
    with torch.no_grad():
      out = model.generate(input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=NEW,
                           do_sample=False)[0]
    answers.append(out[asked.shape[1]:].tolist())
  return answers


@pytest.mark.parametrize('kind', ['begins', 'begins_and_ends', 'neither'])
def test_greedy_text_after_import_fine_tuning_and_export(kind, tmp_path):
  """A tiny Llama with <s> and </s>: the same text as transformers' at each stage, and not that without <s>."""
  made = folders.byte_level(['<unk>', '<s>', '</s>'])
  if kind != 'neither':
    folders.around(made, ['<s>'], ['</s>'] if kind == 'begins_and_ends' else [])
  tokenizer = tokenizer_of(made, bos_token='<s>', eos_token='</s>', unk_token='<unk>')
  folder = llama(tmp_path / 'theirs', tokenizer)
  c = runs.import_folder(folder, tmp_path / 'run')
  run = trained_model.load(tmp_path / 'run')
  expected = answered(folder, PROMPTS)
  assert c.data.document_mask == (kind != 'neither')
  assert run.generate(list(PROMPTS), tokens=NEW, temperature=0) == expected and len(set(expected)) == 3
  if kind == 'begins':
    with_nothing = dataclasses.replace(run, config=run.config.copy_and_resolve_references())
    with_nothing.config.data.document_mask = False
    assert with_nothing.generate(list(PROMPTS), tokens=NEW, temperature=0) != expected
  runs.export_run(tmp_path / 'run', tmp_path / 'out')
  assert answered(tmp_path / 'out', PROMPTS) == expected
  # Some steps on text of ours, documents ending with </s>.
  t = tiny.config(tmp_path, steps=30, init_from=str(folder), vocabulary=c.vocabulary.to_dict(),
                  model=dict(c.model.to_dict(), vocab_size=0), data=dict(document_mask=c.data.document_mask))
  loop.train(t, tmp_path / 'tuned', 'test', jax.devices()[:1])
  tuned = trained_model.load(tmp_path / 'tuned')
  said = tuned.generate(list(PROMPTS), tokens=NEW, temperature=0)
  runs.export_run(tmp_path / 'tuned', tmp_path / 'tuned_out')
  assert answered(tmp_path / 'tuned_out', PROMPTS) == said != expected
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'tuned_out')
  assert (theirs.bos_token, theirs.eos_token, theirs.unk_token) == ('<s>', '</s>', '<unk>')
  assert theirs('the').input_ids == tokenizer('the').input_ids


def test_several_ends(tmp_path):
  tokenizer = tokenizer_of(folders.around(folders.byte_level(['<s>', '</s>']), ['<s>']), bos_token='<s>',
                           eos_token='</s>')
  folder = llama(tmp_path / 'theirs', tokenizer)
  first = answered_ids(folder, PROMPTS[:1])[0][4]
  generation = json.loads((folder / 'generation_config.json').read_text())
  generation['eos_token_id'] = [tokenizer.eos_token_id, first]
  (folder / 'generation_config.json').write_text(json.dumps(generation))
  runs.import_folder(folder, tmp_path / 'run')
  expected = [tokenizer.decode([i for i in ids if i != first]) for ids in answered_ids(folder, PROMPTS)]
  run = trained_model.load(tmp_path / 'run')
  assert run.generate(list(PROMPTS), tokens=NEW, temperature=0) == expected
  runs.export_run(tmp_path / 'run', tmp_path / 'out')
  assert transformers.GenerationConfig.from_pretrained(tmp_path / 'out').eos_token_id == generation['eos_token_id']


def test_masks_are_filled_as_theirs(tmp_path):
  """RoBERTa's <mask> takes the space before it: the same tokens go in, the same come out."""
  import tokenizers
  mask = tokenizers.AddedToken('<mask>', lstrip=True, special=True, normalized=False)
  made = folders.byte_level(['<s>', '<pad>', '</s>', '<unk>', mask])
  vocab, merges = (json.loads(made.to_str())['model'][key] for key in ('vocab', 'merges'))
  tokenizer = transformers.RobertaTokenizer(vocab=vocab, merges=[tuple(m) for m in merges], mask_token=mask)
  torch.manual_seed(1)
  config = transformers.RobertaConfig(
      vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
      max_position_embeddings=66, type_vocab_size=1, initializer_range=0.3, pad_token_id=1)
  config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
  folder = tmp_path / 'theirs'
  model = transformers.RobertaForMaskedLM(config).eval()
  model.save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  runs.import_folder(folder, tmp_path / 'run')
  run = trained_model.load(tmp_path / 'run')
  for text in ('the quick <mask> fox', 'of<mask>', ' <mask> <mask> potions', 'amber  <mask>and'):
    ids = theirs(text, return_tensors='pt').input_ids
    v = run.vocabulary
    assert [v.cls_id, *v.encode_marked(text).tolist(), v.sep_id] == ids[0].tolist()
    while (masks := (ids[0] == theirs.mask_token_id).nonzero()[:, 0]).numel():
      with torch.no_grad():
        logits = model(input_ids=ids).logits[0, masks]
      logits[:, v.special_ids.tolist()] = -torch.inf
      p = torch.softmax(logits, -1)
      surest = int(p.max(-1).values.argmax())
      ids[0, masks[surest]] = int(p[surest].argmax())
    assert run.generate([text]) == [theirs.decode(ids[0, 1:-1])]


NAMES = ['<a>', '<b>', '<c>']
SETTINGS = st.dictionaries(st.sampled_from(['bos_token', 'eos_token', 'pad_token', 'mask_token', 'cls_token']),
                           st.one_of(st.sampled_from(NAMES), st.none()), max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SETTINGS, st.none() | SETTINGS, st.booleans(), st.sampled_from(
    ['PreTrainedTokenizerFast', 'TokenizersBackend', 'LlamaTokenizerFast', 'Qwen2Tokenizer', 'GPT2TokenizerFast',
     None]))
def test_names_are_read_in_their_order(tmp_path, named, older, with_decoder, kind):
  """What a folder's files name, by all ways of naming: the same ids as AutoTokenizer's."""
  made = folders.byte_level([*NAMES, '<|endoftext|>'])
  token = lambda value: dict(content=value, lstrip=False, rstrip=False, normalized=False, single_word=False)
  config = dict(tokenizer_class=kind, **named) if kind else named
  if with_decoder:
    config = dict(config, added_tokens_decoder={
        str(made.token_to_id(name)): dict(token(name), special=True) for name in NAMES})
  (tmp_path / 'special_tokens_map.json').unlink(missing_ok=True)
  more = {} if older is None else dict(
      special_tokens_map={key: value and token(value) for key, value in older.items() if value})
  folder = folders.folder(tmp_path, made, tokenizer_config=config, config=dict(
      model_type='gpt2', vocab_size=400, n_embd=4, n_layer=1, n_head=1, bos_token_id=None, eos_token_id=None), **more)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  spec = base().vocabulary
  spec.update(name='huggingface', path=str(folder / 'tokenizer.json'))
  v = vocabulary_lib.imported(spec, spec.path)
  for role in ('bos', 'eos', 'pad', 'mask'):
    if getattr(theirs, f'{role}_token_id') is not None:  # else ours may know it from elsewhere
      assert v.special().get(role) == getattr(theirs, f'{role}_token_id'), (role, config, more)
  assert (*v.before, *v.encode('the fox'), *v.after) == tuple(theirs('the fox').input_ids)


@pytest.mark.parametrize('count', [100, 12])
def test_sentinels_of_mt5(count, tmp_path):
  """Pieces of the model: as many in ours as in theirs, at the same ids."""
  names = [f'\u2581<extra_id_{k}>' for k in range(count)][::-1]
  folders.sentence_piece(tmp_path / 'spiece.model', names, size=300 + count, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
  folders.folder(tmp_path, config=dict(model_type='t5', pad_token_id=0, eos_token_id=1, decoder_start_token_id=0),
                 tokenizer_config=dict(tokenizer_class='T5Tokenizer', extra_ids=0, additional_special_tokens=None))
  v = folder_tokenizers.find_tokenizer(tmp_path).vocabulary
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert v.num_sentinels == count == sum('<extra_id_' in name for name in theirs.get_vocab())
  assert [v.sentinel(k) for k in range(count)] == theirs.convert_tokens_to_ids(names[::-1])
  assert v.encode('the quick fox').tolist() == theirs('the quick fox', add_special_tokens=False).input_ids


# --- Models of odd sizes --------------------------------------------------------------------------

BIASED = dict(norm='layernorm', use_bias=True)
ENCODER = dict(BIASED, name='encoder', block='post_norm', embed_norm=True, head='mlm', tie_embeddings=True)
GATED, PLAIN = ('swiglu', 'geglu', 'reglu'), ('gelu', 'gelu_tanh', 'relu', 'swish')
KINDS = dict(
    llama=dict(activation=GATED, tie_embeddings=(True, False)),
    olmo2=dict(block='output_norm', qk_norm='all', activation=GATED, tie_embeddings=(True, False)),
    gpt2=dict(BIASED, position='learned', activation=PLAIN, tie_embeddings=(True, False)),
    gpt_neox=dict(BIASED, block=('parallel', 'pre_norm'), activation=PLAIN, rope_fraction=(0.25, 0.5, 1.0)),
    bert=dict(ENCODER, position='learned', num_types=(1, 2, 3), activation=PLAIN),
    roberta=dict(ENCODER, position='learned_from_2', num_types=(1, 2), activation=PLAIN),
    t5=dict(name='encoder_decoder', position='relative', scale_attention=False, activation=(*PLAIN, *GATED),
            tie_embeddings=(True, False)))


@st.composite
def models(draw):
  """Values of config.model that a run may have, exported or not: `base` rules hold, transformers' perhaps not."""
  pick = lambda value: draw(st.sampled_from(value)) if isinstance(value, tuple) else value
  values = {key: pick(value) for key, value in KINDS[draw(st.sampled_from(sorted(KINDS)))].items()}
  heads, head_dim = draw(st.sampled_from([1, 2, 3, 5, 6])), draw(st.sampled_from([2, 3, 4, 6, 7, 8, 14]))
  kv_heads = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
  model = dict(tiny.MODEL.__dict__, vocab_size=draw(st.sampled_from([61, 101, 128])), num_heads=heads,
               num_kv_heads=kv_heads, head_dim=head_dim, d_ff=draw(st.sampled_from([7, 48])),
               d_model=draw(st.sampled_from([heads * head_dim, heads * head_dim + 1, 30, 48])),
               num_layers=draw(st.integers(1, 2)), num_encoder_layers=draw(st.integers(1, 2)),
               max_positions=draw(st.sampled_from([17, 40])), norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
               dropout=0.1, **values)
  if model['name'] == 'encoder_decoder':
    model['head'] = 'scaled' if model['tie_embeddings'] else 'linear'
  else:
    model['num_encoder_layers'] = model['num_layers']
  return model


AUTO = dict(encoder='AutoModelForMaskedLM', decoder='AutoModelForCausalLM', encoder_decoder='AutoModelForSeq2SeqLM')


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(models(), st.integers(0, 1000))
def test_every_export_is_loaded_with_the_same_logits_or_refused(tmp_path_factory, model, seed):
  folder = tmp_path_factory.mktemp('odd')
  turned = int(model['head_dim'] * model['rope_fraction'])
  if model['position'] == 'rope' and turned % 2:
    return  # no run has such a model
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    params = jax.device_get(transformer.build(transformer.ModelConfig.of(model)).init(jax.random.key(seed)))
  random = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: np.asarray(x) + 0.1 * random.normal(size=x.shape).astype(np.float32), params)
  try:
    model_folders.write(folder / 'out', model, params, vocabulary_of_size(model['vocab_size']))
  except ConfigError as error:
    assert 'no Hugging Face family' in str(error) and not (folder / 'out').exists()
    return
  theirs, about = getattr(transformers, AUTO[model['name']]).from_pretrained(
      folder / 'out', output_loading_info=True)
  assert not any(about[what] for what in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), about
  assert transformers.AutoTokenizer.from_pretrained(folder / 'out')('ab').input_ids
  inputs, decoder = (5 + random.integers(0, 50, (2, n)).astype(np.int32) for n in (9, 7))
  paired = (decoder,) if model['name'] == 'encoder_decoder' else ()
  expected = make_golden.theirs(theirs.eval(), inputs, *paired)
  batch = cases.row(decoder, encoder=cases.row(inputs)) if paired else cases.row(inputs)
  np.testing.assert_allclose(cases.logits(model, params, batch), expected, rtol=0,
                             atol=2e-4 * max(1, np.abs(expected).max()))
  assert not model_config.differing(model_folders.model_of(folder / 'out'), model)


def vocabulary_of_size(size):
  return vocabulary_lib.Characters(''.join(map(chr, range(97, 97 + size - 5))), sentinels=2)


def test_roles_are_those_of_their_tokenizers():
  """Names of roles, and the defaults of classes that a folder may leave out."""
  attributes = transformers.PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES
  assert {f'{role}_token' for role in special_tokens.ROLES} == set(attributes)
  for name, tokens in special_tokens.CLASSES.items():
    kind = getattr(transformers, name, None)
    if kind is None or name == 'MT5Tokenizer':
      continue
    made = kind()
    for role in ('bos', 'eos', 'pad', 'unk', 'mask', 'cls', 'sep'):
      # GPT-2's and Qwen's unknown token, which byte-level tokenizers never need, is their end.
      if role != 'unk' or role in tokens:
        default = getattr(made, f'{role}_token')
        assert (None if default is None else str(default)) == tokens.get(role), (name, role)


def test_print_of_the_config_key():
  assert DEFAULTS['vocabulary.special'] == {}
