"""Whom numbers are told besides metrics.jsonl, and histograms against numpy's."""
import json
import sys

import jax
import numpy as np
import pytest

from t5like import config as config_lib, parameters, sharding
from t5like.config import base
from t5like.errors import ConfigError
from t5like.observe import histograms, metrics, trackers
from t5like.training import loop
from tests import tiny


def events(folder):
  """{tag: [(step, summary value)]} of TensorBoard's files, read by their own code."""
  from tensorboardX.proto import event_pb2
  from tensorboardX.record_writer import RecordWriter  # noqa: F401 (the format that is read here)
  found = {}
  for path in sorted(folder.glob('events*')):
    data, at = path.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at:at + 8], 'little')
      event = event_pb2.Event.FromString(data[at + 12:at + 12 + size])
      at += 16 + size
      for value in event.summary.value:
        found.setdefault(value.tag, []).append((event.step, value))
  return found


def test_tensorboard_has_numbers_texts_and_histograms(tmp_path):
  """Of a whole run; each histogram is of all numbers of a parameter in a layer."""
  c = tiny.config(tmp_path, steps=4, log=dict(trackers=('tensorboard',), histograms_every=2),
                  sample=dict(prompts=('the ',), tokens=4, every=3))
  seen = []
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:2], watch=lambda step, values: seen.append((step, values)))
  found = events(tmp_path / 'run' / 'tensorboard')
  assert [step for step, _ in found['nll']] == [1, 2, 3, 4] == [step for step, v in seen if 'nll' in v]
  assert [step for step, _ in found['sample/text_summary']] == [3, 4]
  assert len((tmp_path / 'run' / 'samples.jsonl').read_text().splitlines()) == 2
  names = [name for name in found if name.startswith(('parameters/', 'gradients/'))]
  layers = c.model.num_layers
  for kind in ('parameters', 'gradients'):
    of_q = [name for name in names if name.startswith(kind) and '/q/w' in name]
    assert len(of_q) == layers and [step for step, _ in found[of_q[0]]] == [2, 4]
    h = found[of_q[-1]][-1][1].histo
    assert h.num == sum(h.bucket) == c.model.d_model ** 2 and h.min < 0 < h.max and h.sum_squares > 0


@pytest.mark.parametrize('shape, mesh, layered, first', [
    ((64, 48), (1, 1), False, 0), ((3, 16, 4, 8), (1, 4), True, 0), ((3, 16), (1, 1), True, 1),
    ((8, 8), (2, 2), False, 0)])
def test_histograms_are_numpys(shape, mesh, layered, first):
  """Of layers by their numbers, the first of which may be 1, where layer 0 does not have the parameter."""
  x = np.random.default_rng(0).standard_t(3, shape).astype(np.float32)
  mesh = sharding.make_mesh(dict(data=mesh[0], fsdp=mesh[1]), jax.devices()[:mesh[0] * mesh[1]])
  path = 'stack/blocks/w' if layered else 'w'
  with jax.set_mesh(mesh):
    spec = jax.sharding.PartitionSpec(*[None] * layered, 'fsdp')
    placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    count = jax.jit(lambda x: histograms._count(x, layered))(placed)
  owners = (False,) * first + (True,) * len(x)
  declared = parameters.Param('LABC'[not layered:][:x.ndim], 'q', 'bias', shape=x.shape, owners=owners)
  found = histograms.named({f'parameters/{path}': jax.device_get(count)}, {path: declared})
  for layer, part in enumerate(x if layered else [x], first):
    h = found[f'parameters/{path}[{layer}]' if layered else 'parameters/w']
    counts, edges = np.histogram(part.astype(np.float64), h.edges)
    assert h.total == part.size == h.counts.sum()
    np.testing.assert_allclose(h.edges, np.linspace(part.min(), part.max(), histograms.BINS + 1), atol=1e-5)
    np.testing.assert_array_equal(h.counts, counts)
    np.testing.assert_allclose([h.mean, h.square], [part.mean(), np.mean(part.astype(np.float64) ** 2)], rtol=1e-4)


def test_numbers_that_are_not_finite_have_no_histogram():
  x = np.array([1.0, np.nan], np.float32)
  count = jax.device_get(jax.jit(lambda x: histograms._count(x, False))(x))
  declared = parameters.Param('A', 'q', 'bias', shape=(2,))
  assert histograms.named({'gradients/w': count}, {'w': declared}) == {}


def test_a_tracker_that_fails_costs_nothing(tmp_path):
  class Broken:
    def numbers(self, step, values):
      raise OSError('no network')
  said = []
  files = metrics.Files(tmp_path, 0, [Broken()], say=said.append)
  for step in (1, 2):
    files.write(step, dict(loss=1.0))
  files.close()
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 2
  assert len(said) == 1 and 'Broken failed' in said[0] and 'no network' in said[0]


def test_wrong_names_and_missing_packages_are_refused(monkeypatch):
  c = base()
  c.log.trackers = ('tensorboard', 'wandbb')
  with pytest.raises(ConfigError, match="(?s)log.trackers=.*did you mean 'wandb'"):
    config_lib.validate(c)
  monkeypatch.setitem(trackers.PACKAGES, 'wandb', 'no_such_package')
  with pytest.raises(ConfigError, match=r"log.trackers has 'wandb'.*pip install -e '.\[wandb\]'"):
    trackers.check(('tensorboard', 'wandb'))


class Run:
  """What wandb.init returns, as far as it is used."""

  def __init__(self, **given):
    self.given, self.id, self.logged = given, given['id'] or 'new', []

  def define_metric(self, *args, **kwargs):
    pass

  def log(self, values):
    self.logged.append(values)

  def finish(self, quiet):
    self.logged.append('finished')


def test_a_service_goes_on_with_the_run_it_knows(tmp_path, monkeypatch):
  """The second start gives the name that the first was given, and steps may repeat."""
  runs = []

  class Wandb:
    Table = Histogram = dict

    @staticmethod
    def init(**given):
      runs.append(Run(**given))
      return runs[-1]
  monkeypatch.setitem(sys.modules, 'wandb', Wandb)
  for _ in range(2):
    (tracker,) = trackers.start(['wandb'], tmp_path, 0, 'some', base())
    tracker.numbers(3, dict(nll=2.0))
    tracker.text(3, 'sample', 'a', 'b')
    tracker.close()
  assert [r.given['id'] for r in runs] == [None, 'new'] and runs[0].given['config']['batch_size']
  assert runs[1].logged[0] == dict(nll=2.0, step=3) and runs[1].logged[-1] == 'finished'
  assert json.loads((tmp_path / 'trackers.json').read_text()) == dict(wandb='new')


def test_a_service_that_does_not_answer_is_told_before_training(tmp_path, monkeypatch):
  class Wandb:
    @staticmethod
    def init(**given):
      raise RuntimeError('api_key not configured')
  monkeypatch.setitem(sys.modules, 'wandb', Wandb)
  with pytest.raises(ConfigError, match='api_key not configured.*wandb login'):
    trackers.start(['wandb'], tmp_path, 0, 'some', base())


@pytest.mark.trackers
def test_the_real_services(tmp_path, monkeypatch):
  """Weights & Biases offline and MLflow's database, over two starts of a run."""
  import mlflow
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/mlflow.db')
  monkeypatch.chdir(tmp_path)
  for steps in (3, 5):
    c = tiny.config(tmp_path, steps=steps, log=dict(trackers=('wandb', 'mlflow'), histograms_every=2),
                    sample=dict(prompts=('the ',), tokens=4))
    loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  ids = json.loads((tmp_path / 'run' / 'trackers.json').read_text())
  client = mlflow.MlflowClient()
  assert [m.step for m in client.get_metric_history(ids['mlflow'], 'nll')] == [1, 2, 3, 4, 5]
  run = client.get_run(ids['mlflow'])
  assert run.info.status == 'FINISHED' and run.data.params['model.num_layers'] == str(c.model.num_layers)
  files = {f.path for f in client.list_artifacts(ids['mlflow'], 'histograms')}
  assert files == {'histograms/2.json', 'histograms/4.json'}
  assert len(list((tmp_path / 'run' / 'wandb').glob(f'offline-run-*-{ids["wandb"]}'))) == 2
