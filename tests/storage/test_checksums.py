"""Checksums of arrays: the same on any mesh, other for any changed bit; damaged checkpoints and devices are found."""
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import NamedSharding, PartitionSpec as P

from t5like import sharding
from t5like.errors import NumericsError
from t5like.storage import checksums
from t5like.storage.checkpoint import Checkpoints
from t5like.training import loop
from t5like.training.trainer import Trainer
from tests import tiny

pytestmark = pytest.mark.usefixtures('compile_once')

ARRAYS = dict(w=np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32), flags=np.array([True, False]),
              b=np.arange(32).astype(jnp.bfloat16), step=np.int32(7))


def on_mesh(spec, **sizes):
  mesh = sharding.make_mesh(sizes, jax.devices()[:np.prod(list(sizes.values()))])
  place = lambda name: NamedSharding(mesh, spec if name == 'w' else P())
  return mesh, {name: jax.device_put(x, place(name)) for name, x in ARRAYS.items()}


@pytest.mark.parametrize('spec, sizes', [
    (P('fsdp'), dict(data=2, fsdp=4, tensor=1)), (P('fsdp', 'tensor'), dict(data=2, fsdp=2, tensor=2)),
    (P(None, 'fsdp'), dict(data=1, fsdp=8, tensor=1))], ids=str)
def test_the_same_on_every_mesh(spec, sizes):
  mesh, alone = on_mesh(P(), data=1, fsdp=1, tensor=1)
  with jax.set_mesh(mesh):
    wanted = checksums.of_tree(alone)
  mesh, spread = on_mesh(spec, **sizes)
  with jax.set_mesh(mesh):
    assert checksums.of_tree(spread) == wanted


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 64 * 32 - 1), st.integers(0, 31))
def test_any_bit_counts(place, bit):
  changed = ARRAYS['w'].copy()
  changed.view(np.uint32).flat[place] ^= np.uint32(1 << bit)
  a, b = (int(jax.jit(checksums.of_array)(x)) for x in (ARRAYS['w'], changed))
  assert a != b


def test_places_count():
  w = ARRAYS['w']
  sums = {int(checksums.of_array(jnp.asarray(x))) for x in (w, w[::-1], w[:, ::-1], w.T, np.roll(w, 1, 0))}
  assert len(sums) == 5


@pytest.mark.parametrize('seed', range(8))
def test_a_device_that_differs_is_named(seed):
  rng = random.Random(seed)
  spec, sizes = rng.choice([(P(), dict(data=4, fsdp=1, tensor=1)), (P('fsdp'), dict(data=4, fsdp=2, tensor=1)),
                            (P('tensor'), dict(data=3, fsdp=1, tensor=2))])
  mesh, arrays = on_mesh(spec, **sizes)
  with jax.set_mesh(mesh):
    assert checksums.differing_replicas(arrays, mesh) == []
    shards = arrays['w'].addressable_shards
    pieces, bad = [np.array(s.data) for s in shards], rng.randrange(len(shards))
    pieces[bad].view(np.uint32).flat[rng.randrange(pieces[bad].size)] ^= np.uint32(1 << rng.randrange(32))
    arrays['w'] = jax.make_array_from_single_device_arrays(
        (64, 32), arrays['w'].sharding, [jax.device_put(p, s.device) for p, s in zip(pieces, shards)])
    assert checksums.differing_replicas(arrays, mesh) == [('w', shards[bad].device)]


# Orbax drops what it was reading when a file turns out to be damaged.
@pytest.mark.filterwarnings('ignore:coroutine .* was never awaited:RuntimeWarning',
                            'ignore::pytest.PytestUnraisableExceptionWarning')
def test_flipped_bits_in_a_checkpoint_are_never_read(tmp_path):
  """In any of its files: what is read is what was saved, or the checkpoint before, or a refusal."""
  c = tiny.config(tmp_path, steps=8)
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  whole, saved = tmp_path / 'run/checkpoints', {}
  mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh), Checkpoints(tmp_path / 'run') as checkpoints:
    template = {k: v for k, v in checkpoints._orbax.load_checkpointables(
        8, dict(params=None, opt_state=None, train=None)).items()}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P())),
                            dict(params=template['params'], opt_state=template['opt_state'], **template['train']))
    for step in (4, 8):
      state = checkpoints._read(step, abstract, checkpoints.meta(step))
      saved[step] = [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]
  files = sorted(f for f in (whole / '8').rglob('*') if f.is_file() and f.stat().st_size)
  rng, fell_back = random.Random(0), 0
  for trial in range(8):
    damaged = tmp_path / f'damaged-{trial}'
    shutil.copytree(whole, damaged / 'checkpoints')
    file = damaged / 'checkpoints' / rng.choice(files).relative_to(whole)
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content[:rng.randrange(len(content))] if trial % 4 == 3 else content)
    said = []
    with jax.set_mesh(mesh), Checkpoints(damaged) as checkpoints:
      state, meta = checkpoints.restore(abstract, said.append)
    assert [np.asarray(x).tobytes() for x in jax.tree.leaves(state)] == saved[meta['step']]
    assert bool(said) == (meta['step'] == 4)
    fell_back += meta['step'] == 4
    shutil.rmtree(damaged)
  assert fell_back >= 3


def test_training_ends_when_a_device_differs(tmp_path, monkeypatch):
  c = tiny.config(tmp_path, steps=8, mesh=dict(data=4, fsdp=2, tensor=1), guard=dict(compare_every=2))
  step, steps = Trainer.step, []

  def flip(trainer, batch):
    metrics = step(trainer, batch)
    steps.append(1)
    if len(steps) == 6:
      w = trainer.params['embed']['w']
      pieces = [np.array(s.data) for s in w.addressable_shards]
      pieces[5].view(np.uint32).flat[7] ^= np.uint32(1 << 20)
      trainer.params['embed']['w'] = jax.make_array_from_single_device_arrays(
          w.shape, w.sharding, [jax.device_put(p, s.device) for p, s in zip(pieces, w.addressable_shards)])
      flip.device = w.addressable_shards[5].device.id
    return metrics
  monkeypatch.setattr(Trainer, 'step', flip)
  with pytest.raises(NumericsError, match='After step 6 device (.*) holds other values of params/embed/w') as e:
    loop.train(c, tmp_path / 'run', 'test', jax.devices())
  assert f'device {flip.device} ' in str(e.value)
  with Checkpoints(tmp_path / 'run') as checkpoints:
    assert checkpoints.steps == [4]


@pytest.mark.parametrize('spec', [P(), P(None, 'fsdp'), P('fsdp', None), P(None, None, 'fsdp')])
def test_large_arrays_are_summed_piece_by_piece_and_give_the_same(monkeypatch, spec):
  x = jax.random.normal(jax.random.key(0), (8, 16, 24))
  whole = int(checksums.of_array(x))
  monkeypatch.setattr(checksums, 'LARGE', 8)
  mesh = sharding.make_mesh(dict(fsdp=-1))
  with jax.set_mesh(mesh):
    assert int(jax.jit(checksums.of_array)(jax.device_put(x, NamedSharding(mesh, spec)))) == whole
