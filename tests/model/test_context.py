"""Rows that are cut over devices: in one piece or in two, attention and whole models as on one device."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t5like import config as config_lib, sharding
from t5like.errors import ConfigError
from t5like.model import attention, attention_kernels, attention_rows, context, loss as loss_lib, models
from t5like.model.context import Cut
from t5like.model.kernels import relative_bias_attention, ring, splash, splash_ring
from tests import tiny
from tests.model.test_kernels import example

KINDS = {'causal': (256, 256), 'prefix': (256, 256), 'bidirectional': (256, 256), 'cross': (128, 256)}
WINDOW = (50, 20)
MIX = jnp.cos(jnp.arange(16.))[None, None, None]


def mesh_of(**axes):
  count = 1
  for size in axes.values():
    count *= size
  return sharding.make_mesh(dict(data=1, fsdp=1, **axes), jax.devices()[:count])


def whole(q, k, v, query, key, causal, window, bias_NR):
  """Attention of rows in one piece, in [T, S] arrays."""
  T, S = q.shape[1], k.shape[1]
  spec = attention_kernels.AttentionSpec(causal, T, S, window=window)
  mask = attention_kernels.visible(spec, query, key)[:, None]
  bias = None if bias_NR is None else relative_bias_attention.expand(bias_NR, T, S)[None]
  return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=0.1)


def of_pieces(q, k, v, query, key, causal, window, bias_NR, kernel, balanced, way):
  """The same by `dot_product` of rows that the mesh in force cuts."""
  T, S = q.shape[1], k.shape[1]
  cut = Cut(T, context.devices(), balanced)
  slots = jnp.broadcast_to(jnp.arange(T), query['segments'].shape)
  query = dict(query, slots=slots) if balanced else query
  of_self = T == S
  cut_of_keys = cut if of_self else Cut(S, context.devices(), False)
  key = query if of_self else key

  def laid_out(x, dims, cut):
    return jax.sharding.reshard(context.in_pieces(x, 1, cut), sharding.in_use(dims))
  if bias_NR is not None:
    bias_NR = jax.sharding.reshard(bias_NR, sharding.in_use('NR'))
  spec = attention_kernels.AttentionSpec(causal, T, S, window=window)
  out = attention.dot_product(
      laid_out(q, 'BTNH', cut), laid_out(k, 'BSKH', cut_of_keys), laid_out(v, 'BSKH', cut_of_keys),
      {name: laid_out(x, 'BT', cut) for name, x in query.items()},
      {name: laid_out(x, 'BS', cut_of_keys) for name, x in key.items()},
      spec, 0.1, bias_NR, kernel=kernel, context_attention=way)
  return context.in_order(jax.sharding.reshard(out, P()), 1, cut)


def compared(kind, kernel, axes, balanced, window=None, biased=False, way='gathered', sizes=None, H=16):
  """Asserts that values and gradients of pieces are those of whole rows."""
  T, S = sizes or KINDS[kind]
  q, k, v, query, key = example(T, S, H=H)
  causal = kind in ('causal', 'prefix')
  if kind != 'prefix':
    query, key = ({n: x for n, x in info.items() if n != 'prefix'} for info in (query, key))
  bias_NR = jnp.asarray(np.random.default_rng(1).normal(size=(4, T + S)), jnp.float32) if biased else None
  is_real = (query['segments'] > 0)[:, :, None, None]

  def value(attend):
    def loss(q, k, v, bias_NR):
      out = jnp.where(is_real, attend(q, k, v, query, key, causal, window, bias_NR), 0)
      return jnp.sum(out * MIX), out
    over = (0, 1, 2, 3) if biased else (0, 1, 2)
    return jax.jit(jax.value_and_grad(loss, over, has_aux=True))(q, k, v, bias_NR)
  (_, wanted), wanted_gradients = value(whole)
  with jax.set_mesh(mesh_of(**axes)):
    (_, out), gradients = value(functools.partial(of_pieces, kernel=kernel, balanced=balanced, way=way))
  np.testing.assert_allclose(out, wanted, atol=1e-5)
  for gradient, wanted_gradient in zip(gradients, wanted_gradients):
    scale = max(1, float(jnp.abs(wanted_gradient).max()))
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-5 * scale)


FAST = [('causal', 'splash', None), ('prefix', 'splash', None), ('causal', 'splash', WINDOW), ('causal', 'bias', None),
        ('prefix', 'xla', WINDOW), ('causal', 'xla-bias', None), ('cross', 'splash', None)]
ALL = [(kind, kernel, window) for kind in KINDS for kernel in ('splash', 'bias', 'xla', 'xla-bias')
       for window in (None, WINDOW) if not (kind == 'cross' and window)]


@pytest.mark.parametrize('kind, kernel, window', [
    pytest.param(*case, id='-'.join(map(str, case)), marks=[] if case in FAST else [pytest.mark.slow]) for case in ALL])
def test_two_pieces_of_a_row_attend_as_all_of_it(kind, kernel, window):
  compared(kind, 'xla' if kernel.startswith('xla') else 'splash', dict(context=4, tensor=2), True, window,
           kernel.endswith('bias'))


# Pieces of 32 tokens, which blocks of 128 are padded from, and of 128 and 256.
SIZES = dict(small=None, large=(1024, 1024))
FAST_RINGS = [('causal', 'splash', None, True, 'large'), ('prefix', 'splash', WINDOW, True, 'small'),
              ('bidirectional', 'splash', WINDOW, False, 'small'), ('causal', 'bias', None, True, 'small'),
              ('cross', 'splash', None, True, 'small'), ('bidirectional', 'bias', None, False, 'large')]
ALL_RINGS = [(kind, kernel, window, balanced, size) for kind in KINDS for kernel in ('splash', 'bias')
             for window in (None, WINDOW) for balanced in (False, True) for size in SIZES
             if not (kind == 'cross' and (window or size == 'large')) and not (kind == 'bidirectional' and balanced)]


@pytest.mark.parametrize('kind, kernel, window, balanced, size', [
    pytest.param(*case, id='-'.join(map(str, case)), marks=[] if case in FAST_RINGS else [pytest.mark.slow])
    for case in ALL_RINGS])
def test_a_ring_attends_as_all_of_a_row(kind, kernel, window, balanced, size):
  compared(kind, 'splash', dict(context=4, tensor=2), balanced, window, kernel == 'bias', 'ring', SIZES[size])


@pytest.mark.parametrize('length, devices', [(48, 4), (48, 1), (264, 4), (96, 8)])
def test_pieces_and_order(length, devices):
  for balanced in (False, True):
    cut = Cut(length, devices, balanced)
    x = np.arange(length)
    pieces = context.in_pieces(jnp.asarray(x)[None], 1, cut)
    np.testing.assert_array_equal(pieces[0], cut.slots().reshape(-1))
    np.testing.assert_array_equal(context.in_order(pieces, 1, cut)[0], x)
    assert [list(slots[::cut.tokens]) for slots in cut.slots()] == [cut.starts(i) for i in range(devices)]
  seen = cut.slots().sum(1)  # a token sees as many others as its slot says
  assert len(set(seen.tolist())) == 1


def test_all_devices_visit_as_many_blocks():
  reach = splash.CAUSAL
  for length, devices in ((32_768, 4), (131_072, 16)):
    block_q, block_k, pairs = splash.visits(length // devices, length, reach, True)
    blocks = length // 1024
    assert (block_q, block_k) == (1024, 1024)
    assert pairs == blocks * (blocks + 1) / 2 / devices
    _, _, before = splash.visits(length // devices, length, reach, False)
    assert before > (2 - 1.2 / devices) * 0.9 * pairs
  window = splash.Reach(1023, 0)
  assert splash.visits(8192, 32_768, window, True)[2] == 16 * 3 * (512 // 512)
  # Pieces of 33 tokens: blocks hold some of both.
  assert splash.visits(66, 264, reach, True) == (128, 128, 3)


@pytest.mark.parametrize('devices', range(1, 17))
def test_keys_travel_over_at_most_two_links(devices):
  order = ring.order(devices)
  assert sorted(order) == list(range(devices))
  assert max(abs(a - b) for a, b in zip(order, order[1:] + order[:1])) <= 2
  for device in range(devices):
    seen = [ring.owner_at(device, step, devices) for step in range(devices)]
    assert seen[0] == device and sorted(seen) == list(range(devices))
    after = order[(order.index(device) + 1) % devices]
    assert [ring.owner_at(after, step + 1, devices) for step in range(devices - 1)] == seen[:-1]


def test_all_devices_have_the_same_work_at_each_step_of_a_ring():
  for devices in (4, 16):
    cut = Cut(devices * 8192, devices, True)
    plan, (table,) = splash_ring._planned(cut, cut, splash.CAUSAL)
    visited = table['blocks'].sum((2, 3, 4))
    assert (visited == visited[:1]).all()
    blocks = cut.length // 1024
    assert plan.pairs == blocks * (blocks + 1) / 2 / devices and plan.calls == devices
  one_piece = Cut(32_768, 4, False)
  assert splash_ring.plan_of(one_piece, one_piece, splash.CAUSAL).pairs == 36 + 3 * 64
  whole = splash_ring.plan_of(cut, cut, splash.Reach())
  assert (whole.pairs, whole.calls) == (64, 1)


def test_the_way_follows_memory(monkeypatch):
  def way(request, kernel, length, **features):
    cut = Cut(length, 4, False)
    spec = attention_kernels.AttentionSpec(False, length, length, **features)
    k = jax.ShapeDtypeStruct((1, length, 16, 128), jnp.bfloat16)
    call = attention_kernels.Call(spec, 1.0, cut, cut, True)
    chosen = attention_rows.choose(request, kernel, call, k)
    return 'ring' if chosen in [ring.way for ring in attention_rows.RINGS.values()] else 'gathered'
  assert way('auto', 'splash', 8192) == 'gathered' and way('auto', 'splash', 32_768) == 'ring'
  assert way('auto', 'splash', 32_768, window=(511, 0)) == 'gathered'
  assert way('auto', 'splash', 262_144, window=(511, 0)) == 'ring'
  assert way('auto', 'relative_bias', 32_768, bias=True) == 'ring'
  assert way('auto', 'xla', 131_072) == 'gathered'
  assert way('auto', 'splash', 131_072, sinks=True) == 'gathered'
  assert way('gathered', 'splash', 131_072) == 'gathered' and way('ring', 'splash', 128) == 'ring'
  with pytest.raises(ConfigError, match="model.context_attention='ring': xla attention"):
    way('ring', 'xla', 128)
  with pytest.raises(ConfigError, match='the ring of splash attention does not implement sinks'):
    way('ring', 'splash', 128, sinks=True)


def test_a_ring_without_its_kernel_is_refused(tmp_path):
  for change, message in ((dict(attention='xla'), "model.attention='xla' has no ring"),
                          (dict(dropout=0.1), 'model.dropout=0.1 has no ring')):
    with pytest.raises(ConfigError, match=message):
      tiny.config(tmp_path, model=dict(change, context_attention='ring'))


def values(c, axes, attention_name, way='auto'):
  """(loss, sums of a batch, gradients of its loss) of a config on a mesh."""
  c = c.copy_and_resolve_references()
  with c.unlocked():
    c.model.update(attention=attention_name, context_attention=way)
  rng = np.random.default_rng(0)
  T = c.data.seq_len

  def tokens(T, prefixes=False):
    cut = T // 3
    segments = np.where(np.arange(T) < cut, 1, np.where(np.arange(T) < T - 3, 2, 0))
    positions = np.where(segments == 1, np.arange(T), np.arange(T) - cut)
    out = dict(inputs=rng.integers(3, c.model.vocab_size, (2, T)), positions=np.stack([positions] * 2),
               segments=np.stack([segments] * 2))
    return {k: v.astype(np.int32) for k, v in out.items()}
  batch = tokens(T)
  batch['targets'] = rng.integers(3, c.model.vocab_size, (2, T)).astype(np.int32)
  batch['weights'] = (batch['segments'] > 0) * rng.uniform(0.5, 1, (2, T)).astype(np.float32)
  if c.model.prefix_mask:
    batch['prefix'] = batch['positions'] < 9
  if c.model.name == 'encoder_decoder':
    batch['encoder'] = tokens(2 * T)
  mesh = mesh_of(**axes)
  with jax.set_mesh(mesh):
    model, _ = models.build_model(c)
    params = jax.jit(model.init)(jax.random.key(0))
    sums = loss_lib.make_sums(model, c.loss, 2)
    placed = sharding.place(mesh, batch)

    def loss(params, batch):
      out = sums(params, batch)
      return out['loss'] / out['weights'], out
    (value, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, placed)
    return jax.device_get((value, out, gradients))


MODELS = dict(
    decoder=dict(),
    window=dict(layers=('local', 'global'), window=20, num_layers=2),
    prefixes=dict(prefix_mask=True),
    bias=dict(position='relative'),
    encoder=dict(name='encoder'),
    encoder_decoder=dict(name='encoder_decoder', position='relative', num_encoder_layers=1, scale_attention=False),
)


def config_of(kind, tmp_path):
  c = tiny.config(tmp_path)
  with c.unlocked():
    c.data.seq_len = 64
    c.model.update(dict(vocab_size=256, num_layers=1), **MODELS[kind])
  return config_lib.resolve(c)


FAST_MODELS = [('decoder', 'splash', 'gathered'), ('window', 'xla', 'auto'), ('prefixes', 'splash', 'ring')]
ALL_MODELS = [(kind, kernel, way) for kind in MODELS
              for kernel, way in (('xla', 'auto'), ('splash', 'gathered'), ('splash', 'ring'))]


@pytest.mark.parametrize('kind, kernel, way', [
    pytest.param(*case, id='-'.join(case), marks=[] if case in FAST_MODELS else [pytest.mark.slow])
    for case in ALL_MODELS])
def test_losses_and_gradients_are_those_of_whole_rows(kind, kernel, way, tmp_path):
  c = config_of(kind, tmp_path)
  value, sums, gradients = values(c, {}, 'xla')
  other_value, other_sums, other_gradients = values(c, dict(context=4, tensor=2), kernel, way)
  np.testing.assert_allclose(other_value, value, atol=1e-5)
  for name, total in sums.items():
    np.testing.assert_allclose(other_sums[name], total, rtol=1e-5, err_msg=name)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), other_gradients, gradients)
