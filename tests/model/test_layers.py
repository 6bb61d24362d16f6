"""Each layer against the same thing written again in numpy, or against golden values of the sources."""
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st

from t5like import sharding
from t5like.model import layers, positions as positions_lib
from t5like.model.attention import GLOBAL, Attention, dot_product
from t5like.model.attention_kernels import AttentionSpec, Dropout, make_mask
from t5like.model.block import Block, View
from t5like.model.kernels.relative_bias_attention import expand
from t5like.sharding import einsum
from tests import tiny

BASE = tiny.MODEL
with_changes = lambda **changes: dataclasses.replace(BASE, **changes)


@pytest.fixture(autouse=True, scope='module')
def one_device():
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield mesh


# Of the two kinds of random numbers XLA compiles these far faster.
KEY = jax.random.key(0, impl='unsafe_rbg')


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn(make):
  """make(key) and its parameters, as a function of nothing for use inside jit: numpy draws, as XLA takes
  seconds to compile a layer's random numbers. Norms' scales and biases are off their initial values too."""
  graph, state = nnx.split(nnx.eval_shape(lambda: make(jax.random.key(0))))
  rng = np.random.default_rng(0)

  def fill(path, x):
    value = rng.normal(size=x.shape).astype(np.float32)
    return 0.3 * value + (path[-2].key == 'scale') if path[-2].key in ('scale', 'b') else value * x.shape[0] ** -0.5
  state = jax.tree_util.tree_map_with_path(fill, state)
  return lambda: nnx.merge(graph, jax.tree.map(jnp.asarray, state))


def place(x, dims):
  return jax.sharding.reshard(jnp.asarray(x), sharding.in_use(dims))


# --- Norms --------------------------------------------------------------------------------------


@pytest.mark.parametrize('norm, bias', [('rmsnorm', False), ('layernorm', True), ('layernorm', False),
                                        ('layernorm_plain', True)])
def test_norms(norm, bias):
  """Over all of the last dimensions at once, so that 'NH' normalises all heads as one vector."""
  c = with_changes(norm=norm, use_bias=bias, norm_eps=1e-2)
  shapes = {dims: tuple(c.size(d) for d in dims) for dims in ('D', 'H', 'NH', 'KH')}
  xs = {dims: 3 + random(2, 3, *shape) for dims, shape in shapes.items()}
  names = dict(rmsnorm=['scale'], layernorm_plain=[]).get(norm, ['scale', 'b'] if bias else ['scale'])

  def run(xs):
    out, initial = {}, {}
    for dims, x in xs.items():
      layer = layers.Norm(c, dims)
      initial[dims] = {n: getattr(layer, n)[...] for n in ('scale', 'b') if hasattr(layer, n)}
      for i, name in enumerate(names):
        getattr(layer, name)[...] = random(*shapes[dims], seed=i)
      out[dims] = layer(x)
    return out, initial
  out, initial = jax.jit(run)(xs)
  for dims, shape in shapes.items():
    flat = xs[dims].reshape(2, 3, -1).astype(np.float64)
    flat -= flat.mean(-1, keepdims=True) * (norm != 'rmsnorm')
    expected = (flat / np.sqrt((flat ** 2).mean(-1, keepdims=True) + 1e-2)).reshape(xs[dims].shape)
    expected = expected * random(*shape, seed=0) if 'scale' in names else expected
    expected = expected + random(*shape, seed=1) if 'b' in names else expected
    np.testing.assert_allclose(out[dims], expected, rtol=1e-4, atol=1e-5)
    assert sorted(initial[dims]) == sorted(names)
    for name, value in initial[dims].items():
      np.testing.assert_array_equal(value, np.full(shape, name == 'scale', np.float32))


def test_norms_compute_in_fp32_and_return_what_they_got():
  """In bf16, squares of 300 rounded to 8 bits would be off by far more than the result's own rounding."""
  x = jnp.asarray(300 + random(2, 3, 32), jnp.bfloat16)
  y = layers.Norm(with_changes(norm='layernorm', use_bias=False))(x)
  x = np.asarray(x, np.float64)
  x -= x.mean(-1, keepdims=True)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(y, np.float64), x / np.sqrt((x ** 2).mean(-1, keepdims=True)),
                             rtol=0.01, atol=0.01)


# --- Positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize('fraction, turning', [(1.0, 8), (0.5, 4), (0.25, 2)])
def test_rope_is_a_rotation_of_complex_pairs(fraction, turning):
  """x_i + j x_{i + h}, turned by position / theta^(i / h), h being half of what turns; the rest stays."""
  x, h = random(1, 6, 2, 8), turning // 2
  positions = np.array([[0, 1, 2, 5, 9, 40]], np.int32)
  z = x[..., :h] + 1j * x[..., h:turning]
  z = z * np.exp(1j * positions[..., None, None] * 10_000.0 ** (-np.arange(h) / h))
  y = np.asarray(positions_lib.rope(x, positions, 10_000.0, fraction))
  np.testing.assert_allclose(y[..., :turning], np.concatenate([z.real, z.imag], -1), atol=1e-5)
  np.testing.assert_array_equal(y[..., turning:], x[..., turning:])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_rope_makes_products_of_differences(p, s, more):
  q, k = random(1, 1, 1, 8), random(1, 1, 1, 8, seed=1)
  at = lambda x, position: np.asarray(positions_lib.rope(x, np.array([[position]], np.int32), 1e4, 0.5))
  product = lambda p, s: float((at(q, p) * at(k, s)).sum())
  assert np.isclose(product(p, s), product(p + more, s + more), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('scaled', [False, True])
def test_sinusoids(scaled):
  positions = np.array([[0, 1, 7, 500]], np.int32)
  layer = positions_lib.Sinusoids(BASE, scaled)
  rates = np.geomspace(1, 1e-4, 16)  # D / 2 rates, so wavelengths from 2 pi to 10,000 * 2 pi
  angles = positions[..., None] * rates
  expected = np.concatenate([np.sin(angles), np.cos(angles)], -1)
  got = np.asarray(layer(positions))
  np.testing.assert_allclose(got, expected * (32 ** -0.5 if scaled else 1), atol=1e-4)
  if scaled:
    layer.scale[...] = jnp.float32(2)
    np.testing.assert_allclose(layer(positions), 2 * expected, atol=1e-3)


ENCODER_STARTS = [*range(9), 12, 16, 23, 32, 46, 64, 91]
DECODER_STARTS = [*range(17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


def reference_bucket(distance, bidirectional):
  """Golden: the first distance of each bucket, from T5's own code run in float64; key - query = distance."""
  if bidirectional:
    return 16 * (distance > 0) + max(b for b, s in enumerate(ENCODER_STARTS[:16]) if s <= abs(distance))
  return max(b for b, s in enumerate(DECODER_STARTS) if s <= max(0, -distance))


@pytest.mark.parametrize('bidirectional', [True, False])
def test_relative_buckets(bidirectional):
  distances = np.arange(-300, 301)
  got = np.asarray(positions_lib.RelativeBias.buckets(jnp.asarray(distances), bidirectional))
  assert got.tolist() == [reference_bucket(d, bidirectional) for d in distances.tolist()]
  assert set(got.tolist()) == set(range(32)) - ({16} if bidirectional else set())  # 16: 0 ahead, which is none


@pytest.mark.parametrize('bidirectional', [True, False])
@pytest.mark.parametrize('T, S, at', [(6, 6, 0), (5, 9, 0), (9, 5, 0), (1, 40, 33), (4, 300, 150), (3, 7, 4)])
def test_relative_bias_and_its_gradient(bidirectional, T, S, at):
  """bias[n, t, s] = table[n, bucket(s - (at + t))]; its gradient is that of looking the number up."""
  table = random(4, 32)
  buckets = np.array([[reference_bucket(s - t - at, bidirectional) for s in range(S)] for t in range(T)])

  weights = random(4, T, S, seed=2)

  make = drawn(lambda key: positions_lib.RelativeBias(BASE, bidirectional, key))

  @jax.jit
  def run(table, at):  # `at` is a traced number here, as it is in decoding
    def biases(table):
      layer = make()
      layer.w[...] = table
      return expand(layer(T, S, at), T, S)
    bias, pull = jax.vjp(biases, table)
    return bias, pull(place(weights, 'N__'))[0]
  bias, got = run(table, at)
  np.testing.assert_array_equal(bias, table[:, buckets])
  gradient = np.zeros((4, 32))
  np.add.at(gradient.T, buckets, weights.transpose(1, 2, 0))
  np.testing.assert_allclose(got, gradient, rtol=1e-4, atol=1e-4)


# --- Feed-forward, initial scales ---------------------------------------------------------------


@pytest.mark.parametrize('name', layers.ACTIVATIONS)
def test_mlp(name):
  x, gated = random(1, 4, 32), name in ('swiglu', 'geglu', 'geglu_exact', 'glu', 'bilinear', 'reglu')

  mlp = drawn(lambda key: layers.MLP(with_changes(activation=name, use_bias=True), key))()
  assert hasattr(mlp, 'gate') == gated
  sigmoid = lambda h: 1 / (1 + np.exp(-h))
  tanh_gelu = lambda h: 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h ** 3)))
  exact_gelu = lambda h: h * 0.5 * (1 + np.vectorize(math.erf)(h / np.sqrt(2)))
  act = dict(swiglu=lambda h: h * sigmoid(h), swish=lambda h: h * sigmoid(h), geglu=tanh_gelu, gelu_tanh=tanh_gelu,
             gelu=exact_gelu, geglu_exact=exact_gelu, glu=sigmoid,
             bilinear=lambda h: h, relu=lambda h: np.maximum(h, 0), reglu=lambda h: np.maximum(h, 0))[name]
  dense = lambda part, x: x @ np.asarray(part.w[...]) + np.asarray(part.b[...])
  h = dense(mlp.up, x)
  h = act(dense(mlp.gate, x)) * h if gated else act(h)
  np.testing.assert_allclose(mlp(x), dense(mlp.down, h), atol=3e-5)


D, HEADS, SIZE, FF, L = 256, 4, 32, 512, 8  # HEADS * SIZE != D, so that fan-ins differ
SCALES = dict(  # family -> role -> standard deviation
    t5=dict(embed=1, positions=1, q=(D * SIZE) ** -0.5, k=D ** -0.5, v=D ** -0.5, o=(HEADS * SIZE) ** -0.5,
            up=D ** -0.5, gate=D ** -0.5, down=FF ** -0.5, head=D ** -0.5),
    fan_in=dict(embed=D ** -0.5, positions=0.02, q=D ** -0.5, k=D ** -0.5, v=D ** -0.5,
                o=(HEADS * SIZE) ** -0.5 / 4, up=D ** -0.5, gate=D ** -0.5, down=FF ** -0.5 / 4, head=D ** -0.5),
    gpt2=dict.fromkeys('embed positions q k v up gate head'.split(), 0.02) | dict(o=0.02 / 4, down=0.02 / 4),
    bert=dict.fromkeys('embed positions q k v o up gate down head'.split(), 0.02 * 0.8796),
    neox=dict.fromkeys('embed positions q k v up gate head'.split(), (2 / (5 * D)) ** 0.5)
    | dict(o=2 / (L * D ** 0.5), down=2 / (L * D ** 0.5)))  # 4 = sqrt(2 L)


@pytest.mark.parametrize('init', SCALES)
def test_initial_scales(init):
  """Every matrix of a block, the tables and a head: standard deviation, and whether it was cut."""
  c = with_changes(init=init, d_model=D, num_layers=L, num_heads=HEADS, num_kv_heads=HEADS, head_dim=SIZE, d_ff=FF,
                   vocab_size=512, max_positions=256, use_bias=True)

  def make(key):
    attention, mlp = Attention(c, key, True), layers.MLP(c, key)
    parts = {r: getattr(attention, r) for r in 'qkvo'} | dict(up=mlp.up, gate=mlp.gate, down=mlp.down)
    parts.update(embed=layers.Embed(c, key), positions=positions_lib.Table(c, 'T', key),
                 head=layers.Dense(c, 'BTD,DV->BTV', key, 'head'))
    return {role: part.w[...] for role, part in parts.items()}, {r: parts[r].b[...] for r in ('q', 'o', 'up', 'head')}
  weights, biases = jax.jit(make)(KEY)
  assert set(weights) == set(SCALES[init])
  for role, w in weights.items():
    std, w = SCALES[init][role], np.asarray(w)
    assert np.isclose(w.std(), std, rtol=0.02), role
    cut = init == 'bert' or init == 't5' and role in ('up', 'gate', 'down', 'head')
    # Uncut normals reach beyond four deviations in so many draws, cut ones end at 2 / 0.8796 of their own.
    assert (np.abs(w).max() <= 2.001 / 0.8796 * std) == cut, role
    assert abs(w.mean()) < 0.02 * std, role
  assert not any(np.any(b) for b in biases.values())


def test_initial_relative_bias_is_uniform():
  """variance_scaling(1, 'fan_avg', 'uniform') of [heads, buckets]: variance 2 / (heads + 32)."""
  w = np.asarray(positions_lib.RelativeBias(with_changes(num_heads=224), True, jax.random.key(0)).w[...])
  assert np.isclose(w.var(), 2 / 256, rtol=0.05) and np.abs(w).max() <= (6 / 256) ** 0.5


# --- Dropout ------------------------------------------------------------------------------------


def test_dropout_keeps_the_mean_and_stops_without_a_key():
  x, c = jnp.ones((8, 64, 64)), with_changes(dropout=0.3)
  y = np.asarray(layers.dropout(x, c, jax.random.key(0)))
  assert abs(y.mean() - 1) < 0.02 and abs((y == 0).mean() - 0.3) < 0.02
  assert np.allclose(y[y > 0], 1 / 0.7)
  assert len({row.tobytes() for row in y[0]}) == 64  # every position loses features of its own
  assert layers.dropout(x, c, None) is x and layers.dropout(x, BASE, jax.random.key(0)) is x
  shared = np.asarray(layers.dropout(x, with_changes(dropout=0.3, dropout_style='t5'), jax.random.key(0)))
  assert len({row.tobytes() for row in shared[0]}) == 1 and len({row.tobytes() for row in shared[:, 0]}) == 8


@pytest.mark.parametrize('style', ['standard', 't5'])
def test_dropout_inside_the_mlp_is_t5s(style):
  c = with_changes(dropout=0.5, dropout_style=style, activation='relu')

  make = drawn(lambda key: layers.MLP(c, key))

  def run(key, x):
    mlp = make()
    h = jax.nn.relu(x @ mlp.up.w[...])
    keep = layers.keep_share((2, 1, 48), 0.5, key, sharding.in_use('BTF')) if style == 't5' else 1.0
    return mlp(x, key), einsum('BTF,FD->BTD', h * keep, mlp.down.w[...])
  got, expected = jax.jit(run)(KEY, place(random(2, 5, 32), 'BTD'))
  np.testing.assert_allclose(got, expected, atol=1e-5)


# --- Attention ----------------------------------------------------------------------------------

ROWS = dict(segments=np.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]], np.int32),
            positions=np.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]], np.int32))
PREFIX = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], bool)
MASKS = dict(  # row 0
    causal=[[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]],
    prefix=[[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]],
    both=[[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]])


def attended(q, k, v, mask_BTS, scale=None, bias_NTS=0.0, keep_BNTS=1.0):
  repeats = q.shape[2] // k.shape[2]
  k, v = np.repeat(k, repeats, 2), np.repeat(v, repeats, 2)
  logits = np.einsum('btnh,bsnh->bnts', q, k) * (q.shape[-1] ** -0.5 if scale is None else scale) + bias_NTS
  logits = np.where(mask_BTS[:, None], logits, -1e30)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return np.einsum('bnts,bsnh->btnh', p / p.sum(-1, keepdims=True) * keep_BNTS, v)


@pytest.mark.parametrize('see', MASKS)
def test_masks(see):
  rows = ROWS | (dict(prefix=PREFIX) if see == 'prefix' else {})
  mask = np.asarray(make_mask(rows, rows, causal=see != 'both'))
  assert mask[0].astype(int).tolist() == MASKS[see]
  assert not mask[1, :, 4].any()  # nobody sees padding


class Given(NamedTuple):
  """Dropout whose mask is known."""
  keep: np.ndarray
  how: Dropout = Dropout(0.5, alike=False)

  def kept(self, q_BTNH, S):
    return place(self.keep, 'BNT_')


@pytest.mark.parametrize('case, K', [('causal', 1), ('causal', 2), ('causal', 4), ('prefix', 2), ('both', 2),
                                     ('bias', 2), ('unscaled', 2), ('dropout', 1), ('all', 4)])
def test_dot_product(case, K):
  q, k, v = (random(2, 5, n, 8, seed=i) for i, n in enumerate((4, K, K)))
  bias = random(4, 10, seed=3) if case in ('bias', 'all', 'dropout') else None
  keep = np.random.default_rng(4).choice([0, 2.0], (2, 4, 5, 5)).astype(np.float32)
  keep = keep if case in ('dropout', 'all') else None
  t, s = np.indices((5, 5))
  scale, rows = (0.9 if case in ('unscaled', 'all') else None), dict(ROWS)
  if case in ('prefix', 'all'):
    rows['prefix'] = PREFIX
  mask = np.asarray(make_mask(rows, rows, case != 'both'))
  expected = attended(q, k, v, mask, scale, 0.0 if bias is None else bias[:, t - s + 5], 1.0 if keep is None else keep)

  def run(q, k, v, rows, bias, keep):
    rows, spec = sharding.spread_rows(rows), AttentionSpec(case != 'both', 5, 5)
    return dot_product(place(q, 'BTNH'), place(k, 'BSKH'), place(v, 'BSKH'), rows, rows, spec, scale,
                       None if bias is None else place(bias, 'NR'), None if keep is None else Given(keep))
  got = np.asarray(jax.jit(run)(q, k, v, rows, bias, keep))
  np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
  np.testing.assert_allclose(got[1, :4], expected[1, :4], atol=1e-5)


@pytest.mark.parametrize('style', ['standard', 't5'])
def test_dropout_of_attention(style):
  """The mean over many masks is the output without dropout; in T5's style equal queries stay equal."""
  c = with_changes(dropout=0.4, dropout_style=style, position='none')
  x = np.repeat(random(1, 1, 32), 6, 1) + 0.5 * np.eye(6, 32, dtype=np.float32)[None]
  x[0, 5] = x[0, 4]
  rows = dict(segments=np.ones((1, 6), np.int32), positions=np.zeros((1, 6), np.int32))

  make = drawn(lambda key: Attention(c, key, causal=False))

  def run(x, rows, keys):
    attention, rows, x = make(), sharding.spread_rows(rows), place(x, 'BTD')
    one = lambda key: attention(x, attention.keys_values(x, rows['positions']), rows, rows, random=key)
    return one(None), jax.lax.map(one, keys)
  plain, many = map(np.asarray, jax.jit(run)(x, rows, jax.random.split(KEY, 2000)))
  spread = many.std(0).max() / 2000 ** 0.5
  assert spread > 0 and np.abs(many.mean(0) - plain).max() < 5 * spread
  same = np.abs(many[:, :, 4] - many[:, :, 5]).max((1, 2)) < 1e-5
  assert same.all() if style == 't5' else not same[:50].any()


# --- Blocks -------------------------------------------------------------------------------------


BLOCKS = dict(  # x, (its sublayer, its norm).. -> the block's output, from the formulas in t5like/config/base.py
    pre_norm=lambda x, f, n: x + f(n(x)), post_norm=lambda x, f, n: n(x + f(x)),
    output_norm=lambda x, f, n: x + n(f(x)), sandwich=lambda x, f, n, after: x + after(f(n(x))))


@pytest.mark.parametrize('kind, cross', [*((kind, True) for kind in BLOCKS), ('pre_norm', False), ('parallel', False),
                                         ('parallel', True)])
def test_blocks_by_hand(kind, cross):
  """Where norms and sums stand; the parts are tested above."""
  c = with_changes(block=kind, norm='layernorm', use_bias=True)

  make = drawn(lambda key: Block(c, key, causal=True, cross=cross))

  def run(x, rows, memory_x, bias):
    block, rows, x = make(), sharding.spread_rows(rows), place(x, 'BTD')
    norms = [block.attention_norm, *([block.cross_norm] if cross else []), block.mlp_norm]
    memory, bias, own = dict(rows, x=place(memory_x, 'BTD')), place(bias, 'NR'), block.attention
    got, cache, side = block(x, View(rows, rows, memory, bias, GLOBAL))
    assert cache is None and side == {}
    attend = lambda y: own(y, own.keys_values(y, rows['positions']), rows, rows, bias)
    parts = [attend, block.mlp]
    if cross:
      other = block.cross
      parts.insert(1, lambda y: other(y, other.keys_values(memory['x'], rows['positions']), rows, memory))
    if kind != 'parallel':
      expected = x
      if kind == 'sandwich':
        outs = [block.attention_out_norm, *([block.cross_out_norm] if cross else []), block.mlp_out_norm]
        norms = list(zip(norms, outs))
      else:
        norms = [(norm,) for norm in norms]
      for f, of_part in zip(parts, norms):
        expected = BLOCKS[kind](expected, f, *of_part)
      return got, expected
    expected = x
    for f, n in list(zip(parts, norms))[:-1]:
      expected = expected + f(n(expected))
    return got, expected + block.mlp(block.mlp_norm(x))
  got, expected = map(np.asarray, jax.jit(run)(random(2, 5, 32), ROWS, random(2, 5, 32, seed=5), random(4, 10)))
  np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
  np.testing.assert_allclose(got[1, :4], expected[1, :4], atol=1e-5)


@pytest.mark.parametrize('qk_norm, position', [('head', 'rope'), ('all', 'rope'), ('all', 'relative')])
def test_attention_layer_by_hand(qk_norm, position):
  """Projections, norms of queries and keys, then rotation, then attention, then the way out."""
  c = with_changes(qk_norm=qk_norm, position=position, rope_fraction=0.5, scale_attention=position == 'rope')
  x, make = random(2, 5, 32), drawn(lambda key: Attention(c, key, causal=True))

  def run(x, rows):
    layer, rows, x = make(), sharding.spread_rows(rows), place(x, 'BTD')
    got = layer(x, layer.keys_values(x, rows['positions']), rows, rows)
    return (got, {name: getattr(layer, name).w[...] for name in 'qkvo'},
            [layer.q_norm.scale[...], layer.k_norm.scale[...]])
  got, weights, scales = jax.tree.map(np.asarray, jax.jit(run)(x, ROWS))
  assert [scale.shape for scale in scales] == dict(head=[(8,), (8,)], all=[(4, 8), (2, 8)])[qk_norm]
  q, k, v = (np.einsum('btd,dnh->btnh', x, weights[name]) for name in 'qkv')
  axes = (-1,) if qk_norm == 'head' else (-2, -1)
  q, k = (y / np.sqrt((y ** 2).mean(axes, keepdims=True) + 1e-6) * s for y, s in zip((q, k), scales))
  if position == 'rope':
    q, k = (np.asarray(positions_lib.rope(y, ROWS['positions'], 1e4, 0.5)) for y in (q, k))
  expected = attended(q, k, v, np.asarray(make_mask(ROWS, ROWS, True)), None if position == 'rope' else 1.0)
  expected = np.einsum('btnh,nhd->btd', expected, weights['o'])
  np.testing.assert_allclose(got[0], expected[0], atol=2e-5)
  np.testing.assert_allclose(got[1, :4], expected[1, :4], atol=2e-5)


def test_cross_attention_knows_no_positions():
  """Those of an encoder and of its decoder are not to be compared."""
  make = drawn(lambda key: Attention(BASE, key, causal=False, cross=True))

  @jax.jit
  def run(x, positions):
    layer, x = make(), place(x, 'BTD')
    rows = sharding.spread_rows(dict(segments=ROWS['segments'], positions=positions))
    return layer(x, layer.keys_values(x, rows['positions']), rows, rows)
  x, positions = random(2, 5, 32), ROWS['positions']
  np.testing.assert_array_equal(run(x, positions), run(x, 7 * positions[:, ::-1]))
