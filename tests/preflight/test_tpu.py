"""Names of TPU slices, what is known of predictions, and the search for faster ones."""
import pytest

from t5like import config as config_lib
from t5like.errors import ConfigError
from t5like.preflight import compared, page, prediction, search, staged, topologies
from tests.conftest import ROOT


@pytest.mark.parametrize('name, shape, slices, devices, chips, wrap', [
    ('v5e-256', (16, 16), 1, 256, 256, [True, True, False]), ('v5e-64', (8, 8), 1, 64, 64, [False, False, False]),
    ('v5litepod-8', (2, 4), 1, 8, 8, [False] * 3), ('2xv5e-256', (16, 16), 2, 512, 512, [True, True, False]),
    ('v5p-128', (4, 4, 4), 1, 64, 64, [True] * 3), ('v5p:4x4x8', (4, 4, 8), 1, 128, 128, [True] * 3),
    ('v4-16', (2, 2, 2), 1, 8, 8, [False] * 3), ('v6e-256', (16, 16), 1, 256, 256, [True, True, False]),
    ('7x-128', (4, 4, 4), 1, 128, 64, [True] * 3)])
def test_topologies(name, shape, slices, devices, chips, wrap):
  t = topologies.parse(name)
  assert (t.shape, t.slices, t.devices, t.chips, t.wrap) == (shape, slices, devices, chips, wrap)
  assert topologies.parse(t.name) == t


@pytest.mark.parametrize('name, words', [
    ('v9-8', "no TPU generation 'v9'"), ('v5e-7', 'one of 1, 4, 8, 16'), ('v5e:512x16', 'at most 256'),
    ('v5p:4x4', '3 dimensions, such as v5p:4x4x4'), ('pod', 'such as v5e-256'), ('v5p-7', 'no slice of v5p'),
    ('0xv5e-256', 'no TPU generation'), ('v5p:0x4x4', 'such as v5e-256'), ('9999xv5e-256', 'at most 1,024 slices'),
    ('9' * 5000 + 'xv5e-256', 'no TPU generation'), ('v5e-' + '9' * 5000, 'such as'),
    ('v5p:' + '9' * 5000 + 'x4x4', 'such as')],
    ids=lambda text: text[:20])
def test_topologies_that_do_not_exist(name, words):
  with pytest.raises(ConfigError, match=words) as e:
    topologies.parse(name)
  assert len(str(e.value)) < 400


@pytest.mark.parametrize('name', ['v5e', 'v5p', 'v6e', 'tpu7x'])
def test_the_network_between_slices_is_slower_than_links(name):
  g = topologies.GENERATIONS[name]
  assert 3e9 <= g.network * g.cores <= 12.5e9 < g.link


def test_what_is_known_of_a_prediction_depends_on_its_kind():
  mesh = lambda **sizes: {**dict.fromkeys(compared.SHARDING, 1), **sizes}
  of = lambda generation, mesh, architecture='decoder', kernel='splash', slices=1, **more: compared.accuracy(
      compared.kind_of(generation, mesh, architecture, kernel, slices, **more))
  assert 'within 4.4 % of 3 published runs' in of('v5e', mesh(fsdp=256))
  assert 'within 26.1 %' in of('v6e', mesh(fsdp=256)) and 'too short' in of('v6e', mesh(fsdp=256))
  for other in (of('v5e', mesh(fsdp=128, tensor=2)), of('v5e', mesh(fsdp=256), 'encoder_decoder', 'relative_bias'),
                of('v5e', mesh(fsdp=256), slices=2), of('tpu7x', mesh(fsdp=128)), of('v5e', mesh(data=2, fsdp=128)),
                of('v5e', mesh(fsdp=256), kernel='xla'), of('v5e', mesh(fsdp=256), quantization='int8')):
    assert other.startswith('not compared with any published run')


def test_the_front_of_a_search_is_not_beaten():
  report = lambda seconds, used: dict(step_seconds=seconds, hbm=dict(used=used))
  found = [(k, report(*x)) for k, x in enumerate([(1, 9), (2, 10), (3, 5), (4, 6), (5, 1)])]
  assert [k for k, _ in search.front(found)] == [0, 2, 4]


def test_a_run_with_stages_needs_the_memory_of_the_largest_and_the_time_of_all(monkeypatch, capsys):
  def predict(config, topology, full=False, stage=0):
    mfu = dict(mfu=0.5, mfu_causal=0.4, tokens_per_second=1e6, host_tokens_per_second=1e5)
    return dict(mfu, fits=stage < most, step_seconds=(1.0, 2.0, 4.0)[stage], hbm=dict(used=(3, 5, 4)[stage]), chips=16)
  monkeypatch.setattr(prediction, 'predict', predict)
  config = config_lib.load(f'{ROOT}/configs/decoder_tiny.py:smoke', [
      "stages=({'tokens': 3072, 'data.seq_len': 128}, {'tokens': 5120, 'batch_size': 4})"])
  most = 3
  report = staged.predict(config, topologies.parse('v5e-16'))
  assert [line['steps'] for line in report['stages']] == [6, 2, 10]
  assert report['hbm']['used'] == 5 and report['steps'] == 18 and report['hours'] * 3600 == pytest.approx(6 + 4 + 40)
  assert report['chip_hours'] == 16 * report['hours'] and report['mfu'] == pytest.approx(0.5)
  page._show_stages(page._console(), report)
  assert 'stages[1]: 10 steps of 4 x 128' in capsys.readouterr().out
  most = 2
  report = staged.predict(config, topologies.parse('v5e-16'))
  assert not report['fits'] and 'hours' not in report


def test_a_search_finds_what_only_all_changes_together_give(monkeypatch):
  """Steps of which each alone is no faster, as on v5e: options help one split with one remat, and only these."""
  def predict(config, topology, full=False):
    seconds, options = 1.0, dict(config.compile.options)
    seconds += {1: 0, 2: 0.003, 4: 0.002, 8: 0.008}.get(config.mesh.data, 0.5)
    seconds += {1: 0}.get(config.mesh.tensor, 0.2 * config.mesh.tensor)
    seconds += 0.5 * (config.mesh.fsdp_outer - 1)
    seconds += dict(minimal=0, weights=-0.001, none=0).get(config.model.remat, 0.2)
    if options:
      seconds -= 0.03 if (config.mesh.data, config.model.remat) == (2, 'weights') else -0.001
    tried.append((config.mesh.data, config.mesh.tensor))
    fits = config.model.remat != 'none'
    return dict(fits=fits, step_seconds=seconds, hbm=dict(used=2 ** 30), full=full)
  tried, said = [], []
  monkeypatch.setattr(prediction, 'predict', predict)
  config = config_lib.load(f'{ROOT}/configs/yardstick_1b.py')
  (overrides, _), *_ = search.search(config, topologies.parse('v5e-256'), said.append)
  assert overrides['mesh.data'] == 2 and overrides['model.remat'] == 'weights' and overrides['compile.options']
  assert 'compiling to the end' in said[-1]
  # A ladder is left where it gets slower: tensor of 2 is, so that 4 and 8 are not tried.
  assert (1, 2) in tried and (1, 4) not in tried and len(tried) < 40
