"""The same training whatever the machine: meshes, micro-batches, workers, scan, remat, restarts."""
import jax
import numpy as np
import pytest

from t5like.errors import Preempted
from t5like.storage.checkpoint import Checkpoints
from t5like.training import loop
from t5like.training.trainer import Trainer
from tests import tiny

pytestmark = pytest.mark.usefixtures('compile_once')


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """Losses of the plain run: one device, one micro-batch, one reading thread, scan, no remat."""
  folder = tmp_path_factory.mktemp('plain')
  result = tiny.losses(tiny.config(folder))
  assert len(result) == 6 and result[-1] < result[0]
  return result


def slow(*values):
  return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize('mesh', [(8, 1, 1), *slow((1, 8, 1), (2, 2, 2))], ids=lambda m: 'x'.join(map(str, m)))
def test_meshes(mesh, plain, tmp_path):
  data, fsdp, tensor = mesh
  c = tiny.config(tmp_path, mesh=dict(data=data, fsdp=fsdp, tensor=tensor))
  np.testing.assert_allclose(tiny.losses(c, 8), plain, atol=1.01e-5)


@pytest.mark.parametrize('change', [
    # Each axis of the mesh, each remat and each way to cut a batch at least once, most beside others.
    dict(data=dict(workers=4)), dict(model=dict(scan_layers=False)), dict(loss=dict(chunks=4)),
    dict(model=dict(attention='splash')), dict(microbatches=4),
    dict(model=dict(remat='weights'), mesh=dict(data=2, fsdp=2, fsdp_outer=2), microbatches=2),
    dict(model=dict(remat='up'), mesh=dict(fsdp=2, fsdp_outer=2, context=2)),
    dict(model=dict(attention='splash', remat='minimal'), mesh=dict(data=2, fsdp=2, tensor=2)),
    dict(model=dict(remat='attention'), mesh=dict(slice=2, data=1, fsdp=1, context=2, tensor=2)),
    dict(model=dict(remat='full'), mesh=dict(fsdp=2, context=4), microbatches=2, loss=dict(chunks=4)),
    *slow(
        dict(microbatches=2), dict(data=dict(workers=1)), dict(model=dict(remat='full')),
        dict(model=dict(remat='minimal')),
        dict(model=dict(remat='weights'), mesh=dict(data=2, fsdp=2, context=2)),
        dict(model=dict(remat='attention'), mesh=dict(fsdp=4, fsdp_outer=2)),
        dict(mesh=dict(fsdp=2, fsdp_outer=2, tensor=2)),
        dict(mesh=dict(slice=2, data=1, fsdp=1, context=2, tensor=2)),
        dict(mesh=dict(fsdp=2, context=4), microbatches=2, loss=dict(chunks=4)),
        dict(model=dict(remat='full'), microbatches=2, mesh=dict(data=2, fsdp=2, tensor=2)))], ids=str)
def test_ways_to_compute(change, plain, tmp_path):
  devices = 8 if 'mesh' in change else 1
  got = tiny.losses(tiny.config(tmp_path, **change), devices)
  np.testing.assert_allclose(got, plain, atol=1.01e-5)


@pytest.mark.slow
@pytest.mark.parametrize('microbatches', [1, 2])
@pytest.mark.parametrize('tensor', [1, 2])
@pytest.mark.parametrize('fsdp', [1, 2, 4, 8])
def test_every_mesh_of_eight(fsdp, tensor, microbatches, plain, tmp_path):
  """All that 8 devices can be, with and without micro-batches."""
  data = max(1, 8 // (fsdp * tensor))
  mesh, devices = dict(data=data, fsdp=min(fsdp, 8 // tensor), tensor=tensor), 8
  c = tiny.config(tmp_path, mesh=mesh, microbatches=microbatches, model=dict(remat='minimal'))
  np.testing.assert_allclose(tiny.losses(c, devices), plain, atol=1.01e-5)


def test_other_seeds_and_data_orders_differ(plain, tmp_path):
  assert tiny.losses(tiny.config(tmp_path, seed=1))[0] != plain[0]


def final_state(config, workdir):
  """(step, every array of the newest checkpoint as bytes)."""
  with Checkpoints(workdir) as checkpoints:
    step = checkpoints.steps[-1]
    parts = checkpoints._orbax.load_checkpointables(step, dict(params=None, opt_state=None, train=None))
  return step, [np.asarray(x).tobytes() for x in jax.tree.leaves(parts)]


@pytest.mark.parametrize('devices, mesh', [(1, dict(fsdp=1)), (8, dict(data=2, fsdp=2, tensor=2))])
def test_resumed_twice_is_bit_identical_to_never_stopped(devices, mesh, tmp_path, monkeypatch):
  """Stopped after steps 4 and 7 of 10, with dropout on: losses, norms and every array are equal."""
  options = dict(model=dict(dropout=0.1), mesh=mesh, checkpoint=dict(every=0))
  straight = tiny.config(tmp_path, steps=10, **options)
  loop.train(straight, tmp_path / 'straight', 'test', jax.devices()[:devices])

  def ending_at(stop):
    return lambda run: 'test' if run.progress.step == stop else None
  for stop in (4, 7):
    monkeypatch.setattr(loop.Run, '_ending', ending_at(stop))
    with pytest.raises(Preempted, match=f'after step {stop}'):
      loop.train(straight, tmp_path / 'stopped', 'test', jax.devices()[:devices])
  monkeypatch.undo()
  loop.train(straight, tmp_path / 'stopped', 'test', jax.devices()[:devices])

  noise = {'time', 'tokens_per_second', 'mfu', 'data_wait', 'host_memory'}
  lines = [[{k: v for k, v in line.items() if k not in noise} for line in kind]
           for w in ('straight', 'stopped') for kind in tiny.metrics(tmp_path / w)]
  assert len(lines[0]) == 10
  assert lines[0] == lines[2]  # training: json keeps every digit of a float
  assert lines[1] == lines[3]  # validations
  assert final_state(straight, tmp_path / 'straight') == final_state(straight, tmp_path / 'stopped')


def test_resume_on_another_mesh(tmp_path, monkeypatch):
  """The state is the same; later losses agree to 5 decimals."""
  c = tiny.config(tmp_path, steps=8, checkpoint=dict(every=0))
  loop.train(c, tmp_path / 'straight', 'test', jax.devices()[:1])
  monkeypatch.setattr(loop.Run, '_ending', lambda run: 'test' if run.progress.step == 5 else None)
  with pytest.raises(Preempted):
    loop.train(c, tmp_path / 'moved', 'test', jax.devices()[:1])
  monkeypatch.undo()
  c.mesh.update(data=2, fsdp=2, tensor=2)
  loop.train(c, tmp_path / 'moved', 'test', jax.devices())
  a, b = (np.array([l['loss'] for l in tiny.metrics(tmp_path / w)[0]]) for w in ('straight', 'moved'))
  np.testing.assert_array_equal(a[:5], b[:5])
  np.testing.assert_allclose(a, b, atol=1e-5)


def test_another_batch_size_goes_on_from_the_same_sample(tmp_path, monkeypatch):
  c = tiny.config(tmp_path, steps=6, checkpoint=dict(every=0))
  monkeypatch.setattr(loop.Run, '_ending', lambda run: 'test' if run.progress.step == 3 else None)
  with pytest.raises(Preempted):
    loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  monkeypatch.undo()
  c.batch_size = 8
  result = loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  assert result['step'] == 3 + 6 and result['tokens'] == 6 * 16 * 32


OTHERS = dict(
    masked=dict(model=dict(name='encoder', head='mlm', block='post_norm', norm='layernorm', use_bias=True,
                           embed_norm=True,
                           position='learned', tie_embeddings=True, num_types=2, vocab_size=304),
                objective=dict(name='masked_lm')),
    spans=dict(model=dict(name='encoder_decoder', position='relative', scale_attention=False, init='t5', vocab_size=304,
                          num_encoder_layers=1),
               objective=dict(name='span_corruption'), data=dict(packing='best_fit')),
    denoisers=dict(model=dict(vocab_size=304), objective=dict(name='ul2'), data=dict(seq_len=48)))


@pytest.mark.parametrize('kind', ['spans', *(pytest.param(k, marks=pytest.mark.slow) for k in ('masked', 'denoisers'))])
def test_every_architecture_on_any_machine(kind, tmp_path):
  """One device and a mesh of eight with micro-batches, remat, unrolled layers and chunked logits agree."""
  c = tiny.config(tmp_path, steps=4, vocabulary=dict(sentinels=40), **OTHERS[kind])
  plain = tiny.losses(c)
  c.mesh.update(data=2, fsdp=2, tensor=2)
  c.microbatches = 2
  c.model.update(remat='minimal', scan_layers=False)
  c.loss.chunks = 0 if kind == 'spans' else 2 if kind == 'denoisers' else 1
  np.testing.assert_allclose(tiny.losses(c, 8), plain, atol=2e-5)
  assert len(plain) >= 3 and plain[-1] < plain[0]


@pytest.mark.parametrize('kind, mesh', [
    ('spans', dict(data=2, fsdp=2, tensor=2)), pytest.param('spans', {}, marks=pytest.mark.slow),
    pytest.param('decoder', dict(fsdp=2, context=2, tensor=2), marks=pytest.mark.slow),
    pytest.param('prefixes', {}, marks=pytest.mark.slow)])
def test_the_kernel_for_relative_bias_trains_alike(kind, mesh, tmp_path):
  """Losses of the Pallas kernel (interpreted, under remat) and of XLA's attention agree to 5 decimals."""
  plain = dict(model=dict(position='relative', vocab_size=304))
  prefixes = dict(plain, objective=dict(name='prefix_lm'))
  c = tiny.config(tmp_path, steps=3, vocabulary=dict(sentinels=40), evaluate=dict(every=0, batches=1),
                  **dict(spans=OTHERS['spans'], decoder=plain, prefixes=prefixes)[kind])
  want = tiny.losses(c)
  c.model.update(attention='splash', remat='minimal')
  c.mesh.update(mesh)
  np.testing.assert_allclose(tiny.losses(c, 8 if mesh else 1), want, atol=1.01e-5)


LONG = dict(  # masked: 10 predictions in a row of 64, which four devices do not cut evenly
    masked=OTHERS['masked'], spans=dict(OTHERS['spans'], data=dict(packing='best_fit', target_len=16)),
    decoder=dict(model=dict(vocab_size=304)),
    prefixes=dict(model=dict(vocab_size=304), objective=dict(name='prefix_lm')))


@pytest.mark.parametrize('kind, context', [
    ('masked', 4), *(pytest.param(kind, context, marks=pytest.mark.slow) for kind in LONG for context in (2, 4)
                     if (kind, context) != ('masked', 4))])
def test_rows_that_are_cut_train_alike_with_the_kernels_of_tpus(kind, context, tmp_path):
  """Losses of splash and of the kernel for relative bias (interpreted) on pieces of rows, and of XLA's attention."""
  sections = dict(LONG[kind])
  sections['data'] = dict(dict(seq_len=64), **sections.get('data', {}))
  c = tiny.config(tmp_path, steps=6, vocabulary=dict(sentinels=40), evaluate=dict(every=0, batches=1), **sections)
  plain = tiny.losses(c)
  c.model.update(attention='splash', remat='minimal')
  c.mesh.update(fsdp=8 // context // 2, context=context, tensor=2)
  np.testing.assert_allclose(tiny.losses(c, 8), plain, atol=2e-5)
  assert len(plain) >= 3 and plain[-1] < plain[0]


@pytest.mark.slow
def test_encdec_tiny_trains_alike_with_the_kernel(tmp_path):
  from configs.encdec_tiny import get_config
  c = get_config('smoke')
  c.data.directory, c.stop.tokens, c.sample.prompts = str(tmp_path / 'prepared'), 5 * 8 * 64, ()
  c.evaluate.update(every=0, batches=1)
  want = tiny.losses(c)
  c.model.attention = 'splash'
  assert len(want) == 5
  np.testing.assert_allclose(tiny.losses(c), want, atol=1.01e-5)


def test_an_encoder_decoder_resumes_bit_for_bit(tmp_path, monkeypatch):
  options = dict(OTHERS['spans'], checkpoint=dict(every=0), vocabulary=dict(sentinels=40))
  options['model'] = dict(options['model'], dropout=0.1, dropout_style='t5')
  c = tiny.config(tmp_path, steps=6, **options)
  loop.train(c, tmp_path / 'straight', 'test', jax.devices()[:1])
  monkeypatch.setattr(loop.Run, '_ending', lambda run: 'test' if run.progress.step == 3 else None)
  with pytest.raises(Preempted):
    loop.train(c, tmp_path / 'stopped', 'test', jax.devices()[:1])
  monkeypatch.undo()
  loop.train(c, tmp_path / 'stopped', 'test', jax.devices()[:1])
  assert final_state(c, tmp_path / 'straight') == final_state(c, tmp_path / 'stopped')


def test_preflight_compiles_what_trains(tmp_path, monkeypatch):
  """The program that `aot.lower` makes from shapes alone is the one that the loop runs, letter for letter."""
  from t5like import config as config_lib
  from t5like.preflight import compile_ahead
  c = tiny.config(tmp_path, steps=2, mesh=dict(data=2, fsdp=2, tensor=2), microbatches=2, model=dict(remat='minimal'))
  seen, step = [], Trainer.step

  def once(trainer, batch):
    if not seen:
      seen.append(trainer.train_step.lower(trainer.state, batch).as_text())
    return step(trainer, batch)
  monkeypatch.setattr(Trainer, 'step', once)
  loop.train(c, tmp_path / 'run', 'test', jax.devices())
  lowered, facts = compile_ahead.lower(config_lib.resolve(c), jax.devices())
  assert lowered.as_text() == seen[0] and facts['parameters'] > 10_000
