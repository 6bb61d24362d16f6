"""The house rules that a program can check."""
import ast
import re

import pytest

from t5like.objectives.table import OBJECTIVES
from tests.conftest import ROOT

FILES = sorted((ROOT / 't5like').rglob('*.py'))
LINES, FUNCTION = 500, 60

# A module may import those of lower floors, and of its own only what stands before it there.
FLOORS = [['errors', 'hardware', 'plain_json', 'writing', 'rate_schedules', 'nearest'],
          ['schema', 'paths', 'parameters', 'choices'],
          ['objectives.spans', 'objectives.asking', 'objectives.prompts'], ['objectives.spec'],
          ['objectives.functions'],
          ['objectives.one_stack', 'objectives.pairs', 'objectives.mixtures'], ['objectives.table'],
          ['lengths', 'data.templates'], ['evals.task', 'evals.tasks.make'], ['config_values'],
          ['objective_rules', 'mesh_rules', 'optimizer_rules', 'trained'], ['resumable'],
          ['config_rules'], ['config'], ['command_table'], ['command_line'], ['hlo', 'tpu'], ['costs'],
          ['compared', 'schedule', 'kernels.visits'], ['kernels.calls', 'plausible'],
          ['families'], ['huggingface_config'], ['huggingface_weights'], ['sharding'], ['checksums', 'side_values'],
          ['kernels.splash', 'kernels.relative_bias_blocks'], ['kernels.relative_bias_attention'],
          ['model.layers', 'model.attention_kernels'], ['model.attention'], ['model.stack'], ['model.flops'],
          ['model.transformer'], ['data.special_tokens'],
          ['data.vocabulary_kinds'],
          ['data.mirror', 'data.encodings', 'data.corpora'],
          ['data.manifests', 'data.tokenizer_json', 'data.duplicates', 'data.fields'],
          ['data.vocabulary', 'data.files', 'data.functions', 'data.tfds_builder'],
          ['data.vocabulary_check'], ['data.parquet', 'data.tfds_source'], ['data.sources'], ['data.store'],
          ['data.shards'], ['data.held_out'],
          ['data.parts'], ['data.datasets'], ['data.prepare'], ['data.tokenizer_export'],
          ['data.packing'], ['data.plans', 'data.mixing'], ['data.rows'], ['data.pipeline', 'data.kept'],
          ['data.inspect'],
          ['optimizers', 'guard', 'loss'], ['step', 'optim'],
          ['pagecache'],
          ['workdir', 'checkpoint', 'metrics', 'sampling', 'watchdog', 'stop', 'signals', 'profiling', 'lease',
           'ledger', 'histograms'], ['trackers'],
          ['notice', 'rewinds', 'environment'],
          ['beam'], ['decode'],
          ['evals.ask', 'evals.answers', 'evals.items', 'evals.results'], ['evals.score'], ['evals.evaluate'],
          ['evals.harness'], ['evals.plan'],
          ['models', 'opening'], ['build'], ['huggingface'], ['preconditions'],
          ['training.progress'], ['training.plan'], ['training.trainer', 'training.phases'], ['recovery', 'resume'],
          ['training.output'], ['training.parts'], ['training.hooks'],
          ['training.log', 'training.dispatch', 'training.endings', 'saving', 'validation'], ['training.actions'],
          ['loop', 'loaded', 'aot'], ['answering'],
          ['preflight'], ['preflight_report'], ['interchange', 'report', 'selftest', 'replay'], ['commands'],
          ['__main__']]
HOMES = {'difflib': ['nearest', 'trained'],
         'flax': ['model'], 'grain': ['data'], 'tensorflow_datasets': ['data'], 'sentencepiece': ['data'],
         'tokenizers': ['data'], 'array_record': ['data'], 'orbax': ['checkpoint'], 'tensorboardX': ['trackers'],
         'wandb': ['trackers'], 'mlflow': ['trackers'],
         'lm_eval': ['evals'], 'sacrebleu': ['evals'], 'rouge_score': ['evals']}


def name(file):
  return str(file.relative_to(ROOT / 't5like').with_suffix('')).replace('/', '.')


def imports(file):
  """Dotted names of all that a file imports, at the top or inside functions."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      yield from (a.name for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      yield from (f'{node.module}.{a.name}' for a in node.names)


def floor(module):
  return next((i for i, names in enumerate(FLOORS) if module in names), None)


@pytest.mark.parametrize('file', FILES, ids=name)
def test_file(file):
  text, module = file.read_text(), name(file)
  if file.stem == '__init__':
    return
  assert text.count('\n') <= LINES, f'{file} has {text.count(chr(10))} lines'
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      assert node.end_lineno - node.lineno < FUNCTION, f'{module}.{node.name} is too long'
  assert not re.search(r'\b(c|config)\.get\(', text), 'hidden config key'
  assert floor(module) is not None, f'{module} has no floor: add it to FLOORS'
  for other in imports(file):
    ours = other.removeprefix('t5like.')
    if other != ours and floor(ours) is not None and ours != module:
      assert floor(ours) < floor(module), f'{module} imports {ours}, which is not below it'
    for package, homes in HOMES.items():
      if other.split('.')[0] == package:
        assert module.split('.')[0] in homes, f'{module} imports {package}'


def test_one_place_takes_gradients():
  uses = [name(f) for f in FILES if 'value_and_grad(' in f.read_text()]
  assert uses == ['step']


UNMISTAKABLE = {*OBJECTIVES} - {'causal', 'drop'}  # masks are causal too, and documents without text are dropped


def _is_a_name(node):
  """Whether an expression is the name of a config's objective: c.objective.name, or o.name of `o = c.objective`."""
  if isinstance(node, ast.Attribute) and node.attr == 'name':
    return ast.unparse(node.value).rpartition('.')[2] in ('objective', 'o', 'entry')
  return isinstance(node, ast.Constant) and node.value in UNMISTAKABLE


def _compared(tree):
  """Lines that compare the name of an objective, look for it in a list, or look it up in a dict or match."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Compare):
      sides = [node.left, *node.comparators]
      sides += [element for side in sides if isinstance(side, (ast.Tuple, ast.List, ast.Set)) for element in side.elts]
      if any(map(_is_a_name, sides)):
        yield node.lineno
    elif isinstance(node, ast.Dict) and any(key is not None and _is_a_name(key) for key in node.keys):
      yield node.lineno
    elif isinstance(node, ast.Match) and _is_a_name(node.subject):
      yield node.lineno


def test_objectives_are_told_apart_in_their_table_alone():
  files = [*FILES, *(ROOT / 'benchmarks').glob('*.py'), *(ROOT / 'docs').glob('*.py'), ROOT / 'configs/base.py',
           ROOT / 'main.py']
  compared = {str(f.relative_to(ROOT)): list(_compared(ast.parse(f.read_text()))) for f in files
              if f.parent.name != 'objectives'}
  assert {f: lines for f, lines in compared.items() if lines} == {}
  for text in ("c.objective.name == 'x'", "o.name not in NAMES", "'ul2' in (x,)", "x == 'masked_lm'", "x in ('lm',)",
               "{'seq2seq': 1}[x]"):
    assert list(_compared(ast.parse(text))), text


def test_no_file_is_a_drawer():
  assert not {f.stem for f in FILES} & {'utils', 'common', 'helpers', 'misc'}


@pytest.mark.parametrize('file', sorted((ROOT / 'configs').glob('*.py')), ids=lambda f: f.stem)
def test_configs_import_only_base(file):
  allowed = {'ml_collections', 'configs.base', 'configs.base.base', 'configs.base.smoke', 'math'}
  if file.stem == 'base':
    allowed |= {'t5like.objectives', 't5like.objectives.table'}
  assert set(imports(file)) <= allowed
  assert ast.get_docstring(ast.parse(file.read_text()))


# Modules that parse JSON without t5like/schema.py: what they themselves or the process that started them has made, or
# what was checked before; records of training text (data.files) are read by the million, with limits of their own.
PARSERS = {'schema', 'plain_json', 'aot', 'preflight', 'checkpoint', 'data.parts', 'data.files', 'data.tokenizer_json',
           'data.tokenizer_export', 'evals.tasks.make', 'selftest'}


def test_one_place_reads_json():
  parses = {name(f) for f in FILES if re.search(r'\bjson\.loads?\(|map\(json\.loads', f.read_text())}
  assert parses <= PARSERS, f'{sorted(parses - PARSERS)}: read JSON by t5like.schema, with a shape'


def test_nothing_foreign_is_executed():
  dangerous = re.compile(r'\bpickle\.loads?\(|\byaml\.(unsafe_)?load\(|\btorch\.load\(|(?<![\w.])eval\(|'
                         r'allow_pickle=True|shell=True|os\.system\(')
  found = {name(f): dangerous.findall(f.read_text()) for f in FILES if dangerous.search(f.read_text())}
  assert not found
  assert [name(f) for f in FILES if re.search(r'(?<![\w.])exec\(', f.read_text())] == ['config']  # the user's config.py
