"""Meshes that fit or say why not, and rows that land where they belong."""
import jax
import numpy as np
import pytest

from t5like import sharding
from t5like.errors import ConfigError
from t5like.model import models
from t5like.observe import metrics
from t5like.training import build
from tests import tiny


def mesh(data, fsdp, tensor, devices=8):
  sizes = dict(slice=1, data=data, fsdp=fsdp, context=1, tensor=tensor)
  return sharding.make_mesh(sizes, jax.devices()[:devices])


def test_minus_one_takes_what_is_left():
  assert dict(mesh(2, -1, 2).shape) == dict(slice=1, data=2, fsdp_outer=1, fsdp=2, expert=1, context=1, tensor=2)


@pytest.mark.parametrize('sizes, words', [((3, -1, 1), ['mesh.data=3', '8 devices']),
                                          ((2, 2, 1), ['mesh.fsdp=2', '4 devices', '8 are present', '-1'])])
def test_sizes_that_do_not_fit(sizes, words):
  with pytest.raises(ConfigError) as e:
    mesh(*sizes)
  assert all(w in str(e.value) for w in words)


def test_global_rows_are_in_order_and_spread():
  m = mesh(2, 2, 2)
  x = np.arange(32, dtype=np.int32).reshape(8, 4)
  out = sharding.to_global(m, dict(x=x))['x']
  np.testing.assert_array_equal(out, x)
  assert len({tuple(s.index[0].indices(8)) for s in out.addressable_shards}) == 4


def test_batches_that_do_not_divide(tmp_path):
  c = tiny.config(tmp_path)
  c.batch_size = 6
  m = mesh(4, 2, 1)
  with jax.set_mesh(m):
    model, _ = models.build_model(models.with_vocabulary(c, type('V', (), dict(size=259))))
    with pytest.raises(ConfigError, match='batch_size=6 is not divisible .* = 8'):
      build.build_step(c, model, 10, m)


def test_peak_of_a_cpu_is_measured_inside_any_mesh():
  m = mesh(2, 2, 2)
  with jax.set_mesh(m):
    peak, source = metrics.peak_flops(m)
  assert 1e8 < peak < 1e15 and 'measured' in source


def test_predictions_that_context_cannot_cut_are_everywhere():
  mesh = sharding.make_mesh(dict(data=2, context=4), jax.devices())
  batch = sharding.place(mesh, dict(inputs=np.zeros((2, 32), np.int32), predict=np.zeros((2, 5), np.int32),
                                    weights=np.zeros((2, 8), np.float32)))
  shapes = {name: x.sharding.shard_shape(x.shape) for name, x in batch.items()}
  assert shapes == dict(inputs=(1, 8), predict=(1, 5), weights=(1, 2))


@pytest.mark.parametrize('axes, devices_per_host', [
    (dict(fsdp=8), 2), (dict(fsdp=2, context=4), 1), (dict(fsdp=2, context=4), 2), (dict(fsdp=2, context=4), 4),
    (dict(data=2, fsdp=2, tensor=2), 1), (dict(context=8), 2), (dict(data=2, context=2, tensor=2), 2)])
def test_hosts_read_the_rows_whose_pieces_their_devices_hold(axes, devices_per_host, monkeypatch):
  """Also where a row is spread over devices of several hosts, and where hosts do not follow each other in the mesh."""
  mesh = sharding.make_mesh(dict(dict(data=1, fsdp=1), **axes), jax.devices())
  order = np.random.default_rng(0).permutation(8).reshape(-1, devices_per_host)
  x = np.arange(8 * 16, dtype=np.int32).reshape(8, 16)
  spec = jax.sharding.NamedSharding(mesh, sharding.row_spec(x, mesh.shape['context']))
  wanted = spec.devices_indices_map(x.shape)
  all_rows = set()
  for hosts_devices in order:
    own = {jax.devices()[i] for i in hosts_devices}
    local = lambda self, shape: {d: i for d, i in self.devices_indices_map(shape).items() if d in own}
    monkeypatch.setattr(jax.sharding.NamedSharding, 'addressable_devices_indices_map', local)

    def of_callback(shape, sharding_, piece):
      assert shape == x.shape
      return {d: piece(index) for d, index in local(sharding_, shape).items()}
    monkeypatch.setattr(jax, 'make_array_from_callback', of_callback)
    sharding._shards_of_host.cache_clear()
    rows = sharding.rows_of_host(mesh, 8)
    all_rows |= set(rows)
    pieces = sharding.to_global(mesh, dict(x=x[rows]))['x']
    assert set(pieces) == own
    for device, piece in pieces.items():
      np.testing.assert_array_equal(piece, x[wanted[device]])
  sharding._shards_of_host.cache_clear()
  assert all_rows == set(range(8))
