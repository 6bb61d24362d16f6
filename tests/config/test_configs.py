"""Every config file loads, has the parameters it says, and trains when shrunk."""
import ast
import importlib.util

import jax
import pytest

from t5like import config as config_lib
from t5like.model import models
from t5like.objectives import lengths
from t5like.training import loop
from tests.conftest import ROOT

FILES = sorted(f.stem for f in (ROOT / 'configs').glob('*.py') if f.stem not in ('base', '__init__'))
# One of each kind of model, objective and optimizer; the others are like one of these, and slow. decoder_tiny is
# trained by .ci/run, and its small version by test_train.py.
QUICK = {'pythia', 'olmo2_1b', 'bert', 'ul2_base', 't5_prefix_decoder', 'multitask'}


def variants(name):
  found = config_lib.variants(ast.parse((ROOT / 'configs' / f'{name}.py').read_text()), 'arg')
  return ['', *(v for v in found if v != 'smoke')]


EVERY = [(name, v) for name in FILES for v in variants(name)]


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  return tmp_path_factory.mktemp('prepared')


@pytest.mark.parametrize('name', [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FILES])
def test_smoke_trains(name, prepared, tmp_path):
  """Two steps of every config's small version, validation, checkpoint and sample included."""
  c = config_lib.load(str(ROOT / 'configs' / f'{name}.py:smoke'),
                      ['stop.tokens=1024', 'evaluate.every=1', 'evaluate.batches=1', 'sample.tokens=4',
                       f'data.directory={prepared}'])
  result = loop.train(c, tmp_path / 'run', name, jax.devices()[:1])
  assert result['step'] == 2 and 0 < result['validation']['nll'] < 12


KIND = '''objective.name model.name model.block model.norm model.use_bias model.embed_norm model.position
  model.activation model.tie_embeddings model.head model.scale_attention model.qk_norm model.init model.num_types
  model.layers model.rope_scaling model.embed_scale model.attention_softcap
  optimizer.name schedule.name data.packing'''.split()


@pytest.mark.parametrize('name', FILES)
def test_smoke_is_small_and_of_the_same_kind(name):
  """Whatever a run does differently from others, its small version does too, on text that is everywhere."""
  c, small = load(name, ''), load(name, 'smoke')
  for key in KIND:
    section, _, last = key.partition('.')
    assert small[section][last] == c[section][last], key
  assert list(small.data.mixture) == list(c.data.mixture)
  parts = lengths.components(small)
  assert {p.config.data.source for p in parts} <= {'python_docs', 'python_functions'}
  assert [p.config.objective.name for p in parts] == [p.config.objective.name for p in lengths.components(c)]
  assert small.data.seq_len == 64 and small.stop.tokens <= 64 * 8 * 100
  assert small.model.num_layers >= len(small.model.layers) and small.model.window < 64


def load(name, variant):
  return config_lib.load(str(ROOT / 'configs' / f'{name}.py') + (f':{variant}' if variant else ''))


@pytest.mark.parametrize('name, variant', [(n, v) for n, v in EVERY if load(n, v).params_expected])
def test_params_are_those_expected(name, variant):
  """By shapes alone: build_model compares with params_expected, whose figures test_published_counts knows."""
  c = load(name, variant)
  assert models.sizes(config_lib.resolve(c))['parameters'] == c.params_expected


@pytest.mark.parametrize('name, params', [  # published, or counted in released checkpoints
    ('decoder_1b', 1_104_742_400), ('gpt2', 124_373_760), ('decoder_shakespeare', 10_745_088),
    ('decoder_shakespeare:cpu', 804_096), ('gpt3_1b3', 1_315_723_264), ('pythia:70m', 70_426_624),
    ('pythia:160m', 162_322_944), ('pythia:410m', 405_334_016), ('pythia:1b', 1_011_781_632),
    ('pythia:1b4', 1_414_647_808), ('tinyllama_1b1', 1_100_048_384), ('olmo_1b', 1_176_764_416),
    ('olmo2_1b', 1_484_916_736), ('olmo2_1b:7b', 7_298_617_344), ('olmo3_7b', 7_298_011_136),
    ('llama2:7b', 6_738_415_616), ('llama2:70b', 68_976_648_192), ('llama3:8b', 8_030_261_248),
    ('llama3:70b', 70_553_706_496), ('qwen3:0b6', 596_049_920), ('qwen3:8b', 8_190_735_360),
    ('gemma2_2b', 2_614_341_888), ('mistral_7b', 7_241_732_096), ('smollm2:135m', 134_515_008),
    ('smollm2:360m', 361_821_120), ('smollm2:1b7', 1_711_376_384), ('bert', 109_482_240 - 590_592 + 622_650),
    ('bert:large', 335_141_888 - 1_049_600 + 1_082_170), ('roberta_base', 124_697_433),
    ('modernbert_base', 149_655_232), ('modernbert_base:large', 395_881_664), ('t5gemma_2b', 5_596_853_760),
    ('mixtral_8x7b', 46_702_792_704), ('olmoe_1b_7b', 6_919_161_856), ('qwen3_30b_a3b', 30_532_122_624),
    ('switch_base:8', 222_903_552 + 12 * (7 * 2 * 768 * 3072 + 8 * 768)),
    ('switch_base:256', 222_903_552 + 12 * (255 * 2 * 768 * 3072 + 256 * 768)),
    ('t5:small', 60_506_624), ('t5', 222_903_552), ('t5:large', 737_668_096), ('t5:3b', 2_851_598_336),
    ('t5:11b', 11_307_321_344), ('t5_1_1:small', 76_961_152), ('t5_1_1', 247_577_856),
    ('t5_1_1:large', 783_150_080), ('t5_1_1:xl', 2_849_757_184), ('t5_1_1:xxl', 11_135_332_352)])
def test_published_counts(name, params):
  assert load(*name.partition(':')[::2]).params_expected == params


@pytest.mark.parametrize('name, numbers', [  # specs, 1c and 2
    ('t5', (568, 512, 114, 0)), ('mt5_base', (1137, 1024, 229, 0)), ('ul2_base', (1020, 512, 512, 0)),
    ('bert', (126, 0, 128, 19)), ('roberta_base', (510, 0, 512, 77)), ('crammed_bert', (128, 0, 128, 32)),
    ('t5_prefix_decoder:denoising', (524, 0, 736, 0)), ('t5_1_1:xl', (568, 512, 114, 0)),
    ('gpt2', (1025, 0, 1024, 0)), ('lm1b', (128, 0, 128, 0)), ('wmt_ende', (255, 256, 256, 0))])
def test_lengths_are_the_papers(name, numbers):
  n = lengths.shapes(load(*name.partition(':')[::2]))
  assert (n.raw, n.inputs, n.targets, n.predictions) == numbers


def test_the_1b_config_is_as_published():
  c = load('decoder_1b', '')
  derived = config_lib.derived(c)
  assert derived['tokens_per_step'] == 1_048_576 and derived['steps'] == 20_400
  assert c.schedule.warmup_steps == 2040 and c.loss.z_loss == 1e-4


def test_the_table_of_baselines_is_up_to_date():
  spec = importlib.util.spec_from_file_location('baselines', ROOT / 'docs' / 'baselines.py')
  baselines = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(baselines)
  text = (ROOT / 'docs' / 'baselines.md').read_text()
  assert text == baselines.table(), 'run python docs/baselines.py'
  for name, variant in EVERY:
    line = next(line for line in text.splitlines() if line.startswith(f'| `{name}.py') and f':{variant}`' in line
                or not variant and line.startswith(f'| `{name}.py`'))
    r = load(name, variant).reference
    published = f'| {r.metric} {r.value:g} ({r.source}) |' if r.metric else '|  |'
    assert published in line


@pytest.mark.parametrize('name', FILES)
def test_docstrings_say_how_and_what_to_expect(name):
  text = ast.get_docstring(ast.parse((ROOT / 'configs' / f'{name}.py').read_text()))
  assert f'configs/{name}.py' in text and 'Hardware' in text
  c = load(name, '')
  assert c.reference.metric == '' or 'Expected' in text or 'results' in text
  if c.params_expected > 10 ** 8:
    assert 'ot verified here' in text


@pytest.mark.parametrize('name', FILES)
def test_unknown_variants_are_refused(name):
  from t5like.errors import ConfigError
  with pytest.raises(ConfigError, match='nonsense'):
    load(name, 'nonsense')


@pytest.mark.parametrize('size', ['base', 'large', 'wwm'])
def test_both_runs_of_bert_follow_one_schedule(size):
  """Warm-up and one straight line to 0 at step 1,000,000 (Devlin et al. 2018, appendix A.2), over two runs."""
  from t5like.optim import from_config
  first, second = (config_lib.load(ROOT / f'configs/bert.py:{name}') for name in (size, f'{size}_512'))
  steps = [config_lib.derived(c)['steps'] for c in (first, second)]
  assert steps == [900_000, 100_000] and second.data.seq_len == 512
  rates = [from_config.schedule(c.schedule, c.optimizer.learning_rate, n) for c, n in zip((first, second), steps)]
  for step in (10_000, 123_456, 899_999, 900_000, 950_000, 999_999):
    rate = float(rates[0](step) if step < 900_000 else rates[1](step - 900_000))
    assert rate == pytest.approx(1e-4 * (1_000_000 - step) / 990_000, rel=1e-3, abs=1e-10), step
