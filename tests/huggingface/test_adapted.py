"""Models that begin with the weights of another: of another architecture, of two, of another vocabulary."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5like import choices, config as config_lib, sharding
from t5like.config import adaptation, correspondences
from t5like.errors import ConfigError
from t5like.huggingface import adapted, model_folders
from t5like.model import models, transformer
from t5like.model.stack import Stack
from t5like.prepared import opening
from t5like.storage.checkpoint import Checkpoints
from t5like.training import loop, preconditions
from t5like.vocabulary import loading, matching
from tests import tiny
from tests.config.test_config import message

pytestmark = pytest.mark.usefixtures('compile_once')

OBJECTIVES = dict(decoder='causal', encoder='masked_lm', encoder_decoder='prefix_lm')
SENTINELS = dict(sentinels=2)


def settings(name, **model):
  """Sections of a tiny model of an architecture."""
  sections = dict(model=dict(name=name, vocab_size=0, **model), objective=dict(name=OBJECTIVES[name]),
                  vocabulary=SENTINELS)
  if name == 'encoder_decoder':
    sections['data'] = dict(target_len=32)
  return sections


def train(folder, name, config):
  loop.train(config, folder / name, 'test', jax.devices()[:1])
  with jax.set_mesh(one_device()), Checkpoints(folder / name) as checkpoints:
    return {step: params_of(config, folder / name, step) for step in checkpoints.steps}


def one_device():
  return sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])


def params_of(config, workdir, step):
  """{path: array} of a checkpoint."""
  model = model_of(config, workdir)
  abstract = sharding.abstract(lambda: model.init(jax.random.key(0)), jax.sharding.get_mesh())
  with Checkpoints(workdir) as checkpoints:
    return flat(checkpoints.params(step, abstract))


def model_of(config, workdir):
  vocabulary = loading.load(config.vocabulary, workdir / 'vocabulary')
  return models.build_model(models.with_vocabulary(config, vocabulary))[0]


def flat(params):
  return {adapted.path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A folder with a short run of each architecture, called as it; the encoder and decoder have different weights."""
  folder = tmp_path_factory.mktemp('runs')
  for number, name in enumerate(choices.ARCHITECTURES):
    config = tiny.config(folder, steps=4, seed=number + 5, **settings(name))
    loop.train(config, folder / name, 'test', jax.devices()[:1])
  return folder


def weights(runs, name):
  config = config_lib.from_json((runs / name / 'config.json').read_text())
  return params_of(config_lib.complete(config, ''), runs / name, 4)


def begun(folder, name, sections=None, lines=None, **adapt):
  """(config, {path: array}) of a model that begins as config.adapt says."""
  parts = settings(name)
  for section, values in (sections or {}).items():
    if isinstance(values, dict):
      parts[section] = {**parts.get(section, {}), **values}
    else:
      parts[section] = values
  init_from = adapt.pop('init_from')
  config = tiny.config(folder, init_from=str(init_from), adapt=adapt, **parts)
  preconditions.check(config)
  vocabulary = opening.open_data(config).vocabulary
  resolved = models.with_vocabulary(config, vocabulary)
  model, _ = models.build_model(resolved)
  abstract = sharding.abstract(lambda: model.init(jax.random.key(config.seed)), jax.sharding.get_mesh())
  said = [] if lines is None else lines
  params = adapted.initial(resolved, abstract, vocabulary, said.append)
  return resolved, params


PAIRS = list(itertools.product(choices.ARCHITECTURES, choices.ARCHITECTURES))


def test_every_pair_of_architectures_has_its_table():
  assert sorted(correspondences.CORRESPONDENCES) == sorted(PAIRS)


@pytest.mark.parametrize('position', ['rope', 'relative', 'relative_per_layer', 'learned'])
@pytest.mark.parametrize('head', ['linear', 'mlm'])
@pytest.mark.parametrize('pair', PAIRS, ids='-'.join)
def test_every_parameter_has_an_origin_that_exists_and_fits(tmp_path, pair, head, position):
  """By shapes alone, of models with all kinds of parameters."""
  source, name = pair
  model = dict(position=position, num_types=2, embed_norm=True, block='sandwich', qk_norm='head', use_bias=True)
  c = tiny.config(tmp_path, init_from='runs/x', adapt=dict(source=source), **settings(name, **model))
  theirs = tiny.config(tmp_path, **settings(source, **model))
  for config in (c, theirs):
    if config.model.name == 'encoder_decoder':
      config.model.encoder_embed = 'own_positions'
  if head == 'mlm':
    pairs = [section for section in (c, theirs) if section.model.name == 'encoder']
    for section in pairs:
      section.model.head = 'mlm'
  if c.model.head != theirs.model.head:
    c.adapt.head = 'fresh'
  c = config_lib.resolve(c)
  parameters = adapted._declared(c.model.to_dict())
  their_model = config_lib.resolve(theirs).model.to_dict()
  their_model['vocab_size'] = c.model.vocab_size
  origins = adaptation.origins(c, parameters)
  found = adapted.Source('init_from', 'runs/x', their_model, {}, None, tuple)
  adapted.check_fits(c, found, parameters, adapted._located(origins, found))
  turned = {source, name} != {source} and source != 'encoder_decoder'
  fresh = {path for path, origin in origins.items() if origin.is_fresh and not path.startswith('head')}
  expected = set()
  if position.startswith('relative') and turned:
    stack = 'stack'
    if name == 'encoder_decoder':
      stack = 'encoder' if source == 'decoder' else 'decoder'
    expected = {f'{stack}/relative/w' if position == 'relative' else f'{stack}/blocks/relative/w'}
  assert fresh == expected


STACKS_OF = dict(decoder={'stack'}, encoder_decoder={'encoder', 'decoder'})


@pytest.mark.parametrize('pair', [('decoder', 'encoder_decoder'), ('encoder_decoder', 'decoder')], ids='-'.join)
def test_experts_in_some_layers_come_from_experts(tmp_path, pair):
  """By shapes alone; weights of a model without experts are refused, for that reason alone."""
  source, name = pair
  experts = dict(experts=4, sparse_every=2)
  sections = settings(name, **experts)
  c = config_lib.resolve(tiny.config(tmp_path, init_from='runs/x', adapt=dict(source=source), **sections))
  parameters = adapted._declared(c.model.to_dict())
  assert {param.stack for param in parameters.values() if param.is_stacked} == STACKS_OF[name]
  origins = adaptation.origins(c, parameters)

  def check(**theirs):
    config = config_lib.resolve(tiny.config(tmp_path, **settings(source, **theirs)))
    model = dict(config.model.to_dict(), vocab_size=c.model.vocab_size)
    held = adapted.Source('init_from', 'runs/x', model, {}, None, tuple)
    adapted.check_fits(c, held, parameters, adapted._located(origins, held))

  check(**experts)
  with pytest.raises(ConfigError, match='taken from: model.experts is 0 there, 4 here. Width'):
    check()


def test_transferred_arrays_are_bit_equal(runs):
  """Each direction, array by array, beside the tables of choices: spelt out."""
  with jax.set_mesh(one_device()):
    decoder = weights(runs, 'decoder')
    encoder = weights(runs, 'encoder')
    both = weights(runs, 'encoder_decoder')
    crossed = flat(begun(runs, 'encoder_decoder', init_from=runs / 'decoder', source='decoder')[1])
    assert sorted(crossed) == sorted(both)
    for path, array in crossed.items():
      place = path.replace('decoder/blocks/cross_norm', 'stack/blocks/attention_norm')
      place = place.replace('decoder/blocks/cross', 'stack/blocks/attention')
      place = place.replace('encoder/', 'stack/').replace('decoder/', 'stack/')
      np.testing.assert_array_equal(array, decoder[place], path)
    for name, source, theirs in (('encoder', 'decoder', decoder), ('decoder', 'encoder', encoder)):
      turned = flat(begun(runs, name, init_from=runs / source, source=source)[1])
      assert sorted(turned) == sorted(theirs)
      for path, array in turned.items():
        np.testing.assert_array_equal(array, theirs[path], path)
    for name, stack in (('encoder', 'encoder'), ('decoder', 'decoder')):
      cut = flat(begun(runs, name, init_from=runs / 'encoder_decoder', source='encoder_decoder')[1])
      for path, array in cut.items():
        np.testing.assert_array_equal(array, both[path.replace('stack/', f'{stack}/')], path)


def test_two_sources(runs):
  """The encoder's blocks and its own table of an encoder, the rest of a decoder."""
  with jax.set_mesh(one_device()):
    decoder = weights(runs, 'decoder')
    encoder = weights(runs, 'encoder')
    lines = []
    own = dict(model=dict(encoder_embed='own'))
    _, params = begun(runs, 'encoder_decoder', own, lines, init_from=runs / 'decoder', source='decoder',
                      encoder=str(runs / 'encoder'))
    made = flat(params)
  assert not np.array_equal(encoder['embed/w'], decoder['embed/w'])
  for path, array in made.items():
    if path.startswith('encoder/'):
      np.testing.assert_array_equal(array, encoder[path.replace('encoder/', 'stack/')], path)
  np.testing.assert_array_equal(made['encoder_embed/w'], encoder['embed/w'])
  np.testing.assert_array_equal(made['embed/w'], decoder['embed/w'])
  np.testing.assert_array_equal(made['decoder/blocks/mlp/up/w'], decoder['stack/blocks/mlp/up/w'])
  text = '\n'.join(lines)
  assert f"Weights to begin with: {runs / 'encoder'}, a model with model.name='encoder'" in text
  assert 'Fresh: nothing' in text and 'Not used of it: embed/w' not in text


@pytest.mark.parametrize('key', ['encoder', 'decoder', 'cross', 'head'])
def test_what_is_fresh_is_what_the_model_initialises(runs, key):
  with jax.set_mesh(one_device()):
    decoder = weights(runs, 'decoder')
    lines = []
    config, params = begun(runs, 'encoder_decoder', dict(seed=3), lines, init_from=runs / 'decoder', source='decoder',
                           **{key: 'fresh'})
    model, _ = models.build_model(config)
    anew = flat(jax.jit(model.init)(jax.random.key(3)))
  made = flat(params)
  prefix = dict(encoder='encoder/', decoder='decoder/', cross='decoder/blocks/cross', head='head/')[key]
  fresh = {path for path in made if np.array_equal(made[path], anew[path])}
  # Norms begin with 1 and are trained at once: none is equal by chance.
  expected = {path for path in made if path.startswith(prefix)}
  if key == 'decoder':
    expected = {path for path in expected if '/cross' not in path}
  assert fresh == expected
  np.testing.assert_array_equal(made['embed/w'], decoder['embed/w'])
  assert 'Fresh: ' in lines[-1] and prefix.split('/')[0] in lines[-1]


# --- Functions that stay --------------------------------------------------------------------------


def batch_of(tokens=24, rows=3):
  rng = np.random.default_rng(0)
  positions = np.broadcast_to(np.arange(tokens, dtype=np.int32), (rows, tokens))
  segments = np.ones((rows, tokens), np.int32)
  segments[-1, -5:] = 0
  return dict(inputs=rng.integers(3, 259, (rows, tokens)).astype(np.int32), positions=positions, segments=segments)


def test_an_encoder_of_a_decoder_is_the_decoder_that_sees_its_prefix(runs):
  """All of the text being the prefix: the same hidden states, to the bit; also those of an encoder-decoder's encoder.
  """
  batch = batch_of()
  prefix = dict(batch, prefix=np.ones(batch['inputs'].shape, bool))
  with jax.set_mesh(one_device()):
    config, params = begun(runs, 'decoder', init_from=runs / 'decoder', source='decoder')
    model, _ = models.build_model(config)
    expected, _ = jax.jit(model.hidden)(params, prefix)
    seen = batch['segments'] > 0
    config, params = begun(runs, 'encoder', init_from=runs / 'decoder', source='decoder')
    encoder, _ = models.build_model(config)
    states, _ = jax.jit(encoder.hidden)(params, batch)
    np.testing.assert_array_equal(np.asarray(states)[seen], np.asarray(expected)[seen])
    logits = jax.jit(encoder.logits)(params, expected)
    np.testing.assert_array_equal(np.asarray(jax.jit(encoder.apply)(params, batch))[seen], np.asarray(logits)[seen])
    config, params = begun(runs, 'encoder_decoder', init_from=runs / 'decoder', source='decoder')
    module = transformer._Functions(transformer.ModelConfig.of(config.model))

    def encode(params, batch):
      return module._module(params).encode(module._rows(batch))[0]['x']

    np.testing.assert_array_equal(np.asarray(jax.jit(encode)(params, batch))[seen], np.asarray(expected)[seen])
    # .. and not those of a decoder that sees no prefix.
    causal, _ = jax.jit(model.hidden)(params_of_decoder(runs), batch)
    assert not np.allclose(np.asarray(causal)[seen], np.asarray(expected)[seen], atol=1e-3)


def params_of_decoder(runs):
  return begun(runs, 'decoder', init_from=runs / 'decoder', source='decoder')[1]


def test_an_encoder_that_keeps_the_causal_mask_has_the_hidden_states_of_its_decoder(runs, monkeypatch):
  batch = batch_of()
  with jax.set_mesh(one_device()):
    config, params = begun(runs, 'decoder', init_from=runs / 'decoder', source='decoder')
    model, _ = models.build_model(config)
    expected, _ = jax.jit(model.hidden)(params, batch)
    monkeypatch.setattr(transformer.Encoder, 'causal', True)
    config, params = begun(runs, 'encoder', init_from=runs / 'decoder', source='decoder')
    encoder, _ = models.build_model(config)
    states, _ = jax.jit(encoder.hidden)(params, batch)
  np.testing.assert_array_equal(np.asarray(states), np.asarray(expected))


def test_a_decoder_is_its_own_prefix_lm(runs):
  """The same weights, the other objective: logits of the tokens after a prefix are those of the decoder that sees it.
  """
  batch = batch_of()
  prefix = dict(batch, prefix=batch['positions'] < 10)
  with jax.set_mesh(one_device()):
    config, params = begun(runs, 'decoder', dict(objective=dict(name='prefix_lm')), init_from=runs / 'decoder',
                           source='decoder')
    model, _ = models.build_model(config)
    made = jax.jit(model.apply)(params, prefix)
    decoder = weights(runs, 'decoder')
    theirs = {}
    for path, array in decoder.items():
      model_folders.put(theirs, path, jnp.asarray(array))
    np.testing.assert_array_equal(made, jax.jit(model.apply)(theirs, prefix))
    assert not np.allclose(made, jax.jit(model.apply)(theirs, batch), atol=1e-3)


def test_a_stack_that_is_not_causal_is_the_same_parameters(runs):
  """What an adaptation lifts is the mask alone: a Stack has the same parameters with and without it."""
  with jax.set_mesh(one_device()):
    shapes = [jax.eval_shape(lambda causal=causal: transformer.nnx.to_pure_dict(transformer.nnx.state(
        Stack(tiny.MODEL, jax.random.key(0), causal)))) for causal in (True, False)]
  assert jax.tree.map(lambda x: x.shape, shapes[0]) == jax.tree.map(lambda x: x.shape, shapes[1])


# --- Vocabularies ---------------------------------------------------------------------------------


def test_tokens_are_matched_by_text_and_role():
  ours = loading.Characters('abcdz', sentinels=3)
  theirs = loading.Characters('bcdefa\u00e9', sentinels=2)
  matched = matching.match(ours, theirs)
  names = ours.pieces(range(ours.size))
  by_name = dict(zip(names, matched.ids.tolist()))
  assert by_name == {'<pad>': 0, '</s>': 1, '<unk>': 2, 'a': 3, 'b': 4, 'c': 5, 'd': 6, 'z': -1,
                     '<extra_id_0>': theirs.sentinel(0), '<extra_id_1>': theirs.sentinel(1), '<extra_id_2>': -1}
  assert matched.count == 9 and matched.special == 5
  text = matching.describe(ours, theirs, matched)
  assert '9 of 11 tokens' in text and "'z'" in text and "'<extra_id_2>'" in text and '2 are fresh' in text
  of_bytes = matching.match(ours, loading.Bytes(1))
  assert of_bytes.ids[3] == 3 + ord('a') and of_bytes.count == 3 + 5 + 1


def test_rows_of_tokens_that_both_have_are_copied(runs):
  """Bytes into the characters of the text, in all arrays that have a row per token."""
  with jax.set_mesh(one_device()):
    theirs = weights(runs, 'decoder')
    characters = dict(vocabulary=dict(name='characters', sentinels=4))
    lines = []
    config, params = begun(runs, 'decoder', characters, lines, init_from=runs / 'decoder', tokens='matched')
    model, _ = models.build_model(config)
    anew = flat(jax.jit(model.init)(jax.random.key(config.seed)))
    made = flat(params)
  letters = sorted(set(''.join(tiny.WORDS) + ' '))
  for number, letter in enumerate(letters, 3):
    np.testing.assert_array_equal(made['embed/w'][number], theirs['embed/w'][3 + ord(letter)], letter)
    np.testing.assert_array_equal(made['head/out/w'][:, number], theirs['head/out/w'][:, 3 + ord(letter)], letter)
  size = 3 + len(letters) + 4
  np.testing.assert_array_equal(made['embed/w'][[0, 1, 2]], theirs['embed/w'][[0, 1, 2]])
  np.testing.assert_array_equal(made['embed/w'][size - 2:], anew['embed/w'][size - 2:])  # sentinels 2 and 3, no token
  np.testing.assert_array_equal(made['stack/blocks/mlp/up/w'], theirs['stack/blocks/mlp/up/w'])
  assert any(f'Vocabulary: {size - 2} of {size} tokens are among the 261' in line for line in lines), lines
  with pytest.raises(ConfigError, match='add --config.adapt.tokens=matched'), jax.set_mesh(one_device()):
    begun(runs, 'decoder', characters, init_from=runs / 'decoder', source='decoder')


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize('name, sections, adapt, texts', [
    ('encoder', {}, {}, ['--config.adapt.source=decoder', 'docs/adapting.md']),
    ('encoder', {}, dict(source='encoder', head='fresh'), ["adapt.source='encoder'", '--config.adapt.source=decoder']),
    ('encoder', dict(model=dict(d_model=64, num_layers=3)), dict(source='decoder'),
     ['model.d_model is 32 there, 64 here', 'model.num_layers is 2 there, model.num_layers 3 here']),
    ('encoder_decoder', dict(model=dict(num_encoder_layers=3)), dict(source='decoder'),
     ['model.num_layers is 2 there, model.num_encoder_layers 3 here']),
    ('encoder', dict(model=dict(head='mlm')), dict(source='decoder'), ['add --config.adapt.head=fresh']),
    ('encoder_decoder', dict(model=dict(d_ff=32)), dict(source='decoder'), ['model.d_ff is 64 there, 32 here']),
    ('encoder', {}, dict(source='decoder', cross='fresh'), ["adapt.cross='fresh': belongs to model.name"]),
    ('encoder', {}, dict(source='decoder', warm_up_steps=3), ['nothing is', "('embed',)"]),
    ('encoder', {}, dict(source='decoder', warm_up=('embed',)), ['first adapt.warm_up_steps']),
    ('encoder_decoder', {}, dict(source='decoder', encoder='freshh'), ["Did you mean 'fresh'"]),
    ('encoder_decoder', {}, dict(source='decoder', encoder='no/where'), ['adapt.encoder=', 'no such folder']),
    ('encoder_decoder', {}, dict(source='decoder', encoder='DECODER'), ["adapt.encoder_source='encoder'",
                                                                        '--config.adapt.encoder_source=decoder']),
])
def test_what_cannot_be_done_is_said_before_data_is_prepared(runs, name, sections, adapt, texts):
  parts = settings(name)
  for section, values in sections.items():
    parts[section] = {**parts.get(section, {}), **values}
  if adapt.get('encoder') == 'DECODER':
    adapt = dict(adapt, encoder=str(runs / 'decoder'))

  def prepared():
    preconditions.check(tiny.config(runs, init_from=str(runs / 'decoder'), adapt=adapt, **parts))

  text = message(prepared)
  assert '\n' not in text.removeprefix('<config>:\n')
  for part in texts:
    assert part in text, text


def test_depths_may_differ_where_a_stack_is_fresh(runs):
  with jax.set_mesh(one_device()):
    _, params = begun(runs, 'encoder_decoder', dict(model=dict(num_layers=1, num_encoder_layers=2)),
                      init_from=runs / 'encoder', source='encoder', decoder='fresh', cross='fresh')
    made, theirs = flat(params), weights(runs, 'encoder')
  np.testing.assert_array_equal(made['encoder/blocks/mlp/up/w'], theirs['stack/blocks/mlp/up/w'])
  assert made['decoder/blocks/mlp/up/w'].shape[0] == 1


def test_adapt_without_weights_is_refused(tmp_path):
  text = message(lambda: tiny.config(tmp_path, adapt=dict(source='encoder')))
  assert "adapt.source='encoder'" in text and "init_from is ''" in text


# --- Warm-up --------------------------------------------------------------------------------------


def warm(runs, **changes):
  parts = dict(settings('encoder_decoder'), checkpoint=dict(every=1, keep=20), evaluate=dict(every=0), **changes)
  return tiny.config(runs, steps=6, init_from=str(runs / 'decoder'),
                     adapt=dict(source='decoder', cross='fresh', warm_up_steps=3), **parts)


def test_warm_up_holds_what_was_transferred(runs, tmp_path):
  """To the bit for its steps, weight decay included; then it moves. What is fresh moves from the first step on."""
  steps = train(tmp_path, 'run', warm(runs))
  with jax.set_mesh(one_device()):
    _, params = begun(runs, 'encoder_decoder', init_from=runs / 'decoder', source='decoder', cross='fresh')
    first = flat(params)
  held = [path for path in first if '/cross' not in path]
  fresh = [path for path in first if '/cross' in path]
  assert held and fresh
  for step in (1, 2, 3):
    for path in held:
      np.testing.assert_array_equal(steps[step][path], first[path], f'{step} {path}')
  before = first
  for step in (1, 2, 3, 4):
    assert all(not np.array_equal(steps[step][path], before[path]) for path in fresh)
    before = steps[step]
  assert all(not np.array_equal(steps[4][path], first[path]) for path in held)


def test_resuming_within_the_warm_up_changes_no_bit(runs, tmp_path):
  config = warm(runs)
  whole = train(tmp_path, 'whole', config)

  class Stop(Exception):
    pass

  def watch(step, numbers):
    if step == 2 and 'loss' in numbers:
      raise Stop

  with pytest.raises(Stop):
    loop.train(config, tmp_path / 'cut', 'test', jax.devices()[:1], watch=watch)
  with jax.set_mesh(one_device()), Checkpoints(tmp_path / 'cut') as checkpoints:
    assert checkpoints.steps[-1] in (1, 2)
  parts = train(tmp_path, 'cut', config)
  for path, array in whole[6].items():
    np.testing.assert_array_equal(array, parts[6][path], path)


def test_patterns_add_to_the_warm_up(runs, tmp_path):
  config = warm(runs)
  with config.unlocked():
    config.adapt.warm_up = ('embed', 'decoder/blocks[1]/mlp', '!decoder/blocks[0]/cross')
  parameters = adapted._declared(config_lib.resolve(config).model.to_dict())
  trained = adaptation.warmed_up(config, parameters)
  assert trained['embed/w'] == [True] and trained['decoder/blocks/mlp/up/w'] == [False, True]
  assert trained['decoder/blocks/cross/q/w'] == [False, True] and trained['encoder/norm/scale'] == [False]
