"""Hugging Face folders whose weights become parts of a model of another architecture."""
import jax
import numpy as np
import pytest

from t5like import sharding
from t5like.decoding import trained_model
from t5like.errors import ConfigError
from t5like.huggingface import adapted, model_config, model_folders, runs
from t5like.model import models
from t5like.prepared import opening
from t5like.training import loop, preconditions
from tests import folders, tiny
from tests.huggingface.test_interchange import LLAMA, NAMED, random_params

GEMMA = dict(block='sandwich', norm='rmsnorm_unit', embed_scale='sqrt_d_model', activation='geglu', query_scale=0.25,
             layers=('local', 'global'), window=6, attention_softcap=20.0, tie_embeddings=True)
BART = dict(name='encoder_decoder', norm='layernorm', norm_eps=1e-5, use_bias=True, block='post_norm', embed_norm=True,
            encoder_embed='own_positions', position='learned_from_2', tie_embeddings=True, activation='gelu',
            num_kv_heads=2)
T5 = dict(name='encoder_decoder', position='relative', scale_attention=False, num_kv_heads=2)
KINDS = dict(  # changes of the model in a folder
    llama=dict(rope_theta=5e5),
    mistral=dict(layers=('local',), window=6),
    gemma2=GEMMA,
    t5=T5,
    bart=BART,
    t5gemma=dict(GEMMA, name='encoder_decoder', encoder_embed='own', encoder_window=7),
)


@pytest.fixture(scope='module')
def made():
  """A tokenizer with all special tokens that an objective needs."""
  return folders.around(folders.byte_level(['<unk>', '<s>', '</s>', '<pad>', '<mask>']), ['<s>'])


@pytest.fixture(scope='module')
def folder_of(tmp_path_factory, made):
  """Kind -> a folder with random weights of it, in which transformers would find a model and its tokenizer."""
  path = tmp_path_factory.mktemp('folders')
  for kind, changes in KINDS.items():
    values = dict(LLAMA, vocab_size=made.get_vocab_size(), num_layers=2, num_encoder_layers=2, **changes)
    model_folders.write(path / kind, values, random_params(values))
    (path / kind / 'generation_config.json').unlink()
    folders.folder(path / kind, made, tokenizer_config=dict(NAMED, pad_token='<pad>', mask_token='<mask>'))
  return lambda kind: path / kind


def config_of(tmp_path, folder, name, objective, adapt, model=None, **sections):
  """Of a run that begins with a folder, whose model has the sizes and blocks of that one."""
  c = tiny.config(tmp_path, steps=3, init_from=str(folder), adapt=adapt, objective=dict(name=objective),
                  model=dict(name=name),
                  vocabulary=dict(name='huggingface', path=str(folder / 'tokenizer.json')), **sections)
  theirs = model_folders.model_of(folder)
  with c.unlocked():
    c.model.update(theirs, name=name, vocab_size=0, dtype='float32', **(model or {}))
    if name == 'encoder_decoder':
      c.data.target_len = 32
  return c


def begun(config):
  """{path: array} of what a run begins with."""
  assert preconditions.check(config) == []
  vocabulary = opening.open_data(config).vocabulary
  with jax.set_mesh(sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])):
    resolved = models.with_vocabulary(config, vocabulary)
    model, _ = models.build_model(resolved)
    abstract = sharding.abstract(lambda: model.init(jax.random.key(0)), jax.sharding.get_mesh())
    return flat(adapted.initial(resolved, abstract, vocabulary, lambda line: None))


def flat(params):
  return {adapted.path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}


def same(ours, theirs, path):
  """To the bit; of tables, all rows of tokens: those of none, up to a round number, are fresh."""
  if path.partition('/')[0] in ('embed', 'encoder_embed'):
    ours = ours[:len(theirs)]
  if path == 'head/out/w':
    ours = ours[:, :theirs.shape[1]]
  np.testing.assert_array_equal(ours, theirs, path)


@pytest.mark.parametrize('kind, model', [
    ('llama', {}), ('mistral', {}), ('gemma2', dict(encoder_embed='own', encoder_window=7))])
def test_a_decoder_becomes_an_encoder_decoder(folder_of, tmp_path, kind, model):
  """Both stacks are the folder's blocks, to the bit, cross-attention its attention; it trains, answers and exports."""
  c = config_of(tmp_path, folder_of(kind), 'encoder_decoder', 'prefix_lm', dict(source='decoder'), model)
  _, params = model_folders.read(folder_of(kind))
  theirs = flat(params)
  ours = begun(c)
  for path, array in ours.items():
    place = path.replace('encoder_embed/', 'embed/').replace('cross_out_norm', 'attention_out_norm')
    place = place.replace('cross_norm', 'attention_norm').replace('blocks/cross', 'blocks/attention')
    place = place.replace('encoder/', 'stack/').replace('decoder/', 'stack/')
    same(array, theirs[place], path)
  assert {path.partition('/')[0] for path in ours} >= {'encoder', 'decoder', 'embed'}
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  run = trained_model.load(tmp_path / 'run')
  assert isinstance(run.generate(['the quick '], tokens=4)[0], str)
  if kind == 'gemma2':
    assert model_config.family_of(run.config.model.to_dict()) == 't5gemma'
    runs.export_run(tmp_path / 'run', tmp_path / 'out')
    assert model_folders.model_of(tmp_path / 'out')['encoder_window'] == 7


@pytest.mark.parametrize('kind', ['t5', 'bart', 't5gemma'])
@pytest.mark.parametrize('name, objective', [('encoder', 'masked_lm'), ('decoder', 'causal')])
def test_an_encoder_decoder_becomes_one_of_its_stacks(folder_of, tmp_path, name, objective, kind):
  """With what that stack has for itself: its table of tokens (T5Gemma), or its positions and norm (BART)."""
  alone = dict(encoder_embed='shared', encoder_window=0, window=7 if name == 'encoder' and kind == 't5gemma' else 6)
  if kind != 't5gemma':
    alone.update(window=0)
  c = config_of(tmp_path, folder_of(kind), name, objective, dict(source='encoder_decoder'), alone)
  _, params = model_folders.read(folder_of(kind))
  theirs = flat(params)
  for path, array in begun(c).items():
    place = path.replace('stack/', f'{name}/')
    if name == 'encoder' and f'encoder_{path}' in theirs:
      place = f'encoder_{path}'
    same(array, theirs[place], path)


def test_rows_of_tokens_that_both_have(folder_of, made, tmp_path):
  """Of a vocabulary of characters: the folder's rows where it has the same token, others fresh."""
  c = config_of(tmp_path, folder_of('llama'), 'encoder_decoder', 'prefix_lm',
                dict(source='decoder', tokens='matched'))
  with c.unlocked():
    c.vocabulary.update(name='characters', path='')
  _, params = model_folders.read(folder_of('llama'))
  ours = begun(c)
  vocabulary = opening.open_data(c).vocabulary
  number = int(vocabulary.encode('t')[0])
  np.testing.assert_array_equal(ours['embed/w'][number], params['embed']['w'][made.token_to_id('t')])
  assert len(ours['embed/w']) < len(params['embed']['w'])


@pytest.mark.parametrize('kind, model, flag', [
    ('llama', dict(rope_theta=1e4), '--config.model.rope_theta=500000.0'),
    ('mistral', dict(layers=('global',), window=0), '--config.model.window=6')])
def test_what_was_forgotten_is_an_error(folder_of, tmp_path, kind, model, flag):
  """Positions and windows that have their defaults here, whichever architecture begins with the folder."""
  for name, objective, adapt in (('encoder_decoder', 'prefix_lm', dict(source='decoder')), ('decoder', 'causal', {})):
    c = config_of(tmp_path, folder_of(kind), name, objective, adapt, model)
    with pytest.raises(ConfigError, match='which is the default') as error:
      preconditions.check(c)
    assert flag in str(error.value) and '--config.allow_changed=model.' in str(error.value)
    c.allow_changed = 'model.rope_theta,model.layers,model.window'
    assert preconditions.check(c) == []
