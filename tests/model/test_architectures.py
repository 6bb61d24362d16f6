"""Every kind of model: what each token sees, alone, packed, padded, cached, compiled or spread otherwise."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5like import sharding
from t5like.model import transformer
from tests import tiny

T, S, V = 16, 14, tiny.MODEL.vocab_size  # tokens of a row: of the only stack or the decoder, and of the encoder
BERT = dict(name='encoder', block='post_norm', norm='layernorm', use_bias=True, embed_norm=True, tie_embeddings=True,
            head='mlm', init='bert', num_kv_heads=4, activation='gelu')
T5 = dict(name='encoder_decoder', position='relative', scale_attention=False, init='t5', num_kv_heads=4)
KINDS = dict(
    llama={},
    mqa=dict(num_kv_heads=1, activation='geglu', logit_softcap=5.0),
    gpt2=dict(position='learned', norm='layernorm', use_bias=True, activation='gelu', tie_embeddings=True,
              init='gpt2', num_kv_heads=4),
    neox=dict(block='parallel', norm='layernorm', use_bias=True, activation='gelu', rope_fraction=0.25, init='neox',
              num_kv_heads=4),
    olmo=dict(norm='layernorm_plain', tie_embeddings=True),
    olmo2=dict(block='output_norm', qk_norm='all'),
    qk_head=dict(qk_norm='head', activation='reglu'),
    post_norm=dict(block='post_norm', position='sinusoidal', activation='relu'),
    prefix_lm=dict(position='relative', scale_attention=False, tie_embeddings=True, head='scaled', init='t5'),
    bert=BERT | dict(position='learned', num_types=2),
    roberta=BERT | dict(position='learned_from_2'),
    crammed=dict(name='encoder', position='scaled_sinusoidal', embed_norm=True, norm='layernorm', head='mlm',
                 activation='geglu'),
    t5=T5 | dict(activation='relu', tie_embeddings=True, head='scaled'),
    t5_1_1=T5 | dict(activation='geglu'),
    wmt=dict(name='encoder_decoder', position='sinusoidal', norm='layernorm', use_bias=True, activation='relu',
             tie_embeddings=True))
GEMMA = dict(block='sandwich', norm='rmsnorm_unit', embed_scale='sqrt_d_model', activation='geglu', window=5)
KINDS.update(
    gemma2=GEMMA | dict(layers=('local', 'global'), attention_softcap=5.0, logit_softcap=5.0, query_scale=0.3,
                        tie_embeddings=True),
    gemma3=GEMMA | dict(layers=('local', 'global'), num_layers=5, local_rope_theta=100.0, qk_norm='head'),
    smollm3=dict(layers=('global', 'global_nope'), rope_scaling=(('factor', 2.0), ('name', 'linear'))),
    gpt_oss=dict(attention_sinks='head', layers=('local', 'global'), window=4),
    qwen2=dict(qkv_bias=True, layers=('global', 'global', 'local'), window=3),
    modernbert=dict(name='encoder', layers=('global', 'local', 'local'), window=3, window_after=2,
                    local_rope_theta=50.0, activation='geglu_exact', norm='layernorm', block='bare_first',
                    embed_norm=True, head='mlm_unbiased', tie_embeddings=True),
    bare_decoder=dict(block='bare_first', layers=('local', 'global'), window=4, embed_norm=True),
    t5gemma=GEMMA | dict(name='encoder_decoder', layers=('local', 'global'), encoder_window=3, encoder_embed='own'),
    t5_windows=T5 | dict(activation='geglu', layers=('local', 'global'), window=4),
    bart=BERT | dict(name='encoder_decoder', position='learned_from_2', encoder_embed='own_positions', head='linear'),
    mbart=BERT | dict(name='encoder_decoder', position='learned_from_2', encoder_embed='own_positions', head='linear',
                      block='pre_norm', embed_scale='sqrt_d_model'),
    umt5=T5 | dict(activation='geglu', position='relative_per_layer', layers=('local', 'global'), window=4),
    t5_sinks=T5 | dict(activation='geglu', attention_sinks='head'))
DECODERS = [k for k, v in KINDS.items() if v.get('name', 'decoder') == 'decoder']
PAIRS = [k for k, v in KINDS.items() if v.get('name') == 'encoder_decoder']
# Programs run once here: compiling them is what takes time.
compiled = functools.partial(jax.jit, compiler_options=dict(xla_backend_optimization_level=0))


@pytest.fixture(autouse=True, scope='module')
def one_device():
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield mesh


@functools.cache
def built(kind, **changes):
  """(model, params, apply): weights as numpy draws them, norms and biases off their initial values."""
  model = transformer.build(dataclasses.replace(tiny.MODEL, **KINDS[kind] | changes))
  rng = np.random.default_rng(0)

  def fill(path, x):
    value, name = rng.normal(size=x.shape).astype(np.float32), path[-1].key
    if name == 'sinks':
      return value
    return 0.2 * value + (name == 'scale') if name in ('scale', 'b') else 0.2 * value
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return model, jax.tree_util.tree_map_with_path(fill, shapes), compiled(model.apply)


def near(a, b):
  """Equal to 1e-5 of the largest of b."""
  np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=0)


# --- Rows ---------------------------------------------------------------------------------------


def document(n, source, seed, among=(0, V)):
  """n tokens, the encoder's `source` tokens, and how many of the n are a prefix."""
  draw = lambda n: np.random.default_rng(seed).integers(*among, n).astype(np.int32)
  return dict(tokens=draw(n), source=draw(source + 100)[100:], prefix=n // 2)


DOCUMENTS = [document(5, 6, 1), document(2, 3, 2), document(6, 3, 3)]  # and padding in what is left of a row


def pack(kind, rows, width=T, source_width=S, left=False):
  """A batch for a kind of model, of rows that are lists of documents; `left`: padding comes first."""
  def fill(part, width):
    out = {name: np.zeros((len(rows), width), np.int32) for name in ('inputs', 'positions', 'segments')}
    prefix = np.zeros((len(rows), width), bool)
    for r, documents in enumerate(rows):
      at = width - sum(len(d[part]) for d in documents) if left else 0
      for i, d in enumerate(documents):
        where = slice(at, at + len(d[part]))
        out['inputs'][r, where], out['positions'][r, where] = d[part], np.arange(len(d[part]))
        out['segments'][r, where], prefix[r, at:at + d['prefix']] = i + 1, True
        at = where.stop
    return out | (dict(prefix=prefix) if kind == 'prefix_lm' else {})
  encoder = dict(encoder=fill('source', source_width)) if kind in PAIRS else {}
  return fill('tokens', width) | encoder


def visible(kind, b):
  """[T, T] and, with an encoder, [T, S] bool: which tokens of row 0 each token should depend on."""
  segment, position = b['segments'][0], b['positions'][0]
  same = (segment[:, None] == segment[None]) & (segment > 0)[None]
  if kind in DECODERS + PAIRS:
    before = position[:, None] >= position[None]
    same &= before | (b['prefix'][0][:, None] & b['prefix'][0][None] if 'prefix' in b else False)
  return same, segment[:, None] == b['encoder']['segments'][0][None] if 'encoder' in b else None


@pytest.mark.parametrize('kind', KINDS)
def test_what_each_token_sees(kind):
  """Row j has token j changed. The logits that differ, in any bit, are those of tokens that see it: none
  before it, none of other documents, all of an encoder's own document, prefixes in both directions."""
  _, params, apply = built(kind)
  plain = pack(kind, [DOCUMENTS] * T)
  real = plain['segments'][0] > 0
  expected, of_encoder = visible(kind, plain)
  logits = np.asarray(apply(params, plain))

  def differing(part, width):
    edited = jax.tree.map(np.copy, plain)
    rows = edited['encoder'] if part else edited
    rows['inputs'][np.arange(width), np.arange(width)] += 1 - V * (np.diagonal(rows['inputs']) == V - 1)[:width]
    return (np.asarray(apply(params, edited)) != logits).any(-1)[:width].T
  np.testing.assert_array_equal(differing('', T)[real], expected[real])
  assert expected[real].any(0).tolist() == real.tolist()
  if kind in PAIRS:
    np.testing.assert_array_equal(differing('encoder', S)[real], of_encoder[real])


@pytest.mark.parametrize('kind', KINDS)
def test_packed_and_padded_equal_separate(kind):
  """Documents in one row, each in a row of its own with padding, and one without any padding at all."""
  _, params, apply = built(kind)
  rows = [DOCUMENTS, *([d] for d in DOCUMENTS), []]
  logits = np.asarray(apply(params, pack(kind, rows + [[]] * (T - len(rows)))))
  assert np.isfinite(logits).all()  # of padding too
  at = 0
  for row, d in enumerate(DOCUMENTS, 1):
    n = len(d['tokens'])
    near(logits[0, at:at + n], logits[row, :n])
    at += n
  d = DOCUMENTS[-1]
  alone = np.asarray(apply(params, pack(kind, [[d]], len(d['tokens']), len(d['source']))))[0]
  near(logits[0, at - len(alone):at], alone)
  assert np.std(alone) > 0.1


@pytest.mark.parametrize('kind', DECODERS + PAIRS)
def test_cached_decoding_equals_the_full_forward(kind):
  """Prompts of different lengths, padded on the left, then token by token; sources of different lengths."""
  model, params, apply = built(kind)
  P, new, lengths = 6, 4, (6, 3)
  texts = [document(n + new, s, seed=n) | dict(prefix=n) for n, s in zip(lengths, (7, 4))]
  prompts = pack(kind, [[d | dict(tokens=d['tokens'][:n])] for d, n in zip(texts, lengths)], P, left=True)
  if kind in PAIRS:
    prompts['encoder'] = pack(kind, [[d] for d in texts])['encoder']
  later = [dict(inputs=np.stack([d['tokens'][n + i:n + i + 1] for d, n in zip(texts, lengths)]),
                positions=np.array(lengths, np.int32)[:, None] + np.int32(i), segments=np.ones((2, 1), np.int32),
                **(dict(prefix=np.zeros((2, 1), bool)) if 'prefix' in prompts else {})) for i in range(new)]
  own = [n for n in prompts if n not in ('inputs', 'encoder')]
  keys = {n: np.concatenate([prompts[n], *(one[n] for one in later)], 1) for n in own}

  @compiled
  def decode(params, prompts, later, keys):
    cache = model.cache(params, prompts, P + new)
    first, cache = model.extend(params, {n: prompts[n] for n in ('inputs', *own)}, keys, cache, 0)

    def one(cache, batch_at):
      logits, cache = model.extend(params, batch_at[0], keys, cache, batch_at[1])
      return cache, logits[:, 0]
    _, rest = jax.lax.scan(one, cache, (later, P + jnp.arange(new)))
    return first, rest
  first, rest = map(np.asarray, decode(params, prompts, jax.tree.map(lambda *x: np.stack(x), *later), keys))
  full = np.asarray(apply(params, pack(kind, [[d] for d in texts] + [[]] * (T - 2))))
  for row, n in enumerate(lengths):
    near(first[row, P - n:], full[row, :n])
    near(rest[:, row], full[row, n:n + new])


@pytest.mark.parametrize('kind', ['llama', 'prefix_lm', 'bert', 't5'])
def test_no_gradient_crosses_documents(kind):
  """Of a loss on document 2, by the embeddings of tokens that only document 1 holds: exactly 0."""
  model, params, _ = built(kind)
  first, second = document(7, 6, 1, (0, 30)), document(8, 7, 2, (30, V))
  b = pack(kind, [[first, second]])

  def loss(params):
    hidden_BTD, _ = model.hidden(params, b)  # a tied head would give gradients to all tokens
    return jnp.sum(jnp.square(hidden_BTD[:, 7:15] @ np.random.default_rng(0).normal(size=(32, 5))))
  gradient = np.asarray(compiled(jax.grad(loss))(params)['embed']['w'])
  assert not gradient[:30].any()
  seen = sorted({*second['tokens'].tolist(), *(second['source'].tolist() if kind in PAIRS else [])})
  assert np.abs(gradient[seen]).max(-1).min() > 1e-4


def test_buckets_of_an_encoder_and_of_a_decoder():
  """Gradients show which buckets 14 and 16 tokens use: T5's encoder tells ahead (from 16) from behind."""
  model, params, _ = built('t5')
  b = pack('t5', [[document(T, S, 1)]])
  gradient = compiled(jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, b)))))(params)
  used = lambda stack: np.flatnonzero(np.abs(gradient[stack]['relative']['w']).max(0)).tolist()
  assert used('decoder') == [*range(16)]
  assert used('encoder') == [*range(10), *range(17, 26)]  # 12 and 13 share a bucket


# --- The same numbers, compiled or spread otherwise ---------------------------------------------


def loss_and_gradient(model, params, b, key=None):
  square = lambda p, key: jnp.mean(jnp.square(model.apply(p, b, key)))
  return jax.tree.map(np.asarray, compiled(jax.value_and_grad(square))(params, key))


def close(a, b, rtol):
  """(loss, gradients) whose arrays differ by at most rtol of their largest number. Some gradients are 0 but
  for rounding, as that of a bias of keys, so a little of the largest of all is allowed too."""
  (v, tree), (w, other) = a, b
  np.testing.assert_allclose(v, w, rtol=rtol)
  top = max(np.abs(x).max() for x in jax.tree.leaves(tree))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=rtol * max(np.abs(x).max(), 1e-2 * top), rtol=0),
               tree, other)


@pytest.mark.parametrize('kind, dropout, changes', [
    ('llama', 0.1, [dict(scan_layers=False), dict(remat='minimal')]),
    ('bert', 0.0, [dict(remat='minimal', scan_layers=False)]),
    ('t5', 0.1, [dict(remat='full', scan_layers=False)])])
def test_scan_and_remat_change_nothing(kind, dropout, changes):
  model, params, _ = built(kind, dropout=dropout, num_layers=2)
  b, key = pack(kind, [DOCUMENTS, DOCUMENTS[1:]]), jax.random.key(1, impl='unsafe_rbg') if dropout else None
  expected = loss_and_gradient(model, params, b, key)
  for change in changes:
    other = transformer.build(dataclasses.replace(model.config, **change))
    close(expected, loss_and_gradient(other, params, b, key), 1e-5)


@pytest.mark.parametrize('kind, dropout', [
    ('llama', 0.1), ('bert', 0.0), ('t5', 0.1), ('neox', 0.0), ('olmo2', 0.0), ('t5_sinks', 0.1)])
def test_eight_devices_equal_one(kind, dropout):
  """Loss and gradients on a mesh of 2 x 2 x 2, and the masks of dropout."""
  rows = pack(kind, [DOCUMENTS, DOCUMENTS[1:], DOCUMENTS[:1], DOCUMENTS[::-1]] * 2)
  changes, results = dict(dropout=dropout, vocab_size=64, num_layers=2), []
  for sizes in (1, 1, 1), (2, 2, 2):
    mesh = sharding.make_mesh(dict(zip(('data', 'fsdp', 'tensor'), sizes)), jax.devices()[:np.prod(sizes)])
    with jax.set_mesh(mesh):
      model, params, _ = built.__wrapped__(kind, **changes)
      layout = jax.tree.map(lambda x: x.sharding, sharding.abstract(lambda: model.init(jax.random.key(0)), mesh))
      params = jax.tree.map(jax.device_put, params, layout)
      results.append(loss_and_gradient(model, params, sharding.to_global(mesh, rows),
                                       jax.random.key(1) if dropout else None))
  close(*results, 1e-4)


def test_initial_weights_do_not_depend_on_the_mesh():
  drawn = []
  for sizes in (1, 1, 1), (2, 2, 2):
    with jax.set_mesh(sharding.make_mesh(dict(zip(('data', 'fsdp', 'tensor'), sizes)), jax.devices()[:np.prod(sizes)])):
      model = transformer.build(dataclasses.replace(tiny.MODEL, vocab_size=64))
      drawn.append(compiled(model.init)(jax.random.key(0)))
  assert len(drawn[1]['embed']['w'].sharding.device_set) == 8
  assert not drawn[1]['embed']['w'].sharding.is_fully_replicated
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), *drawn)


# --- Initial loss -------------------------------------------------------------------------------


VARIANCES = dict(  # of logits at the start: the last norm gives vectors of squared length D, times a table's variance
    llama=1, t5=1, t5_1_1=1, gpt2=32 * 0.02 ** 2, bert=32 * (0.02 * 0.8796) ** 2, neox=2 / 5)


@pytest.mark.parametrize('kind', VARIANCES)
def test_initial_loss(kind):
  """Nearly ln V + variance / 2, which random logits give for tokens they know nothing of."""
  model = transformer.build(dataclasses.replace(tiny.MODEL, **KINDS[kind]))
  b = pack(kind, [[document(T, S, seed)] for seed in range(16)])

  @compiled
  def loss(key, b):  # averaged over all targets, so that which ones there are is no matter
    logits = model.apply(model.init(key), b)
    return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.mean(logits, -1))
  got = np.mean([loss(jax.random.key(seed, impl='unsafe_rbg'), b) for seed in range(4)])
  assert abs(got - np.log(V) - VARIANCES[kind] / 2) < 0.08 + 0.05 * VARIANCES[kind]
