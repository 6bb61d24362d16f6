"""The house rules that a program can check."""
import ast
import graphlib
import re

import pytest

from t5like.objectives.table import OBJECTIVES
from tests import measures
from tests.conftest import FOLDERS_OF_MARKERS, ROOT

FILES = sorted((ROOT / 't5like').rglob('*.py'))
LINES, FUNCTION = 500, 60

# Rooms (folders, or modules right below t5like/) from the ground up: a module imports from its own and lower ones.
ROOMS = ('errors', 'config_type', 'hardware', 'nearest', 'parameters', 'rate_schedules', 'choices', 'files',
         'objectives', 'config', 'command_line', 'sharding', 'vocabulary', 'sources', 'prepared', 'optim', 'model',
         'storage', 'batches', 'observe', 'decoding', 'evals', 'huggingface', 'training', 'preflight', 'selftest',
         'commands', '__main__')
# The only rooms that a package may be imported in.
HOMES = dict(
    difflib={'nearest'}, flax={'model'}, grain={'batches'}, tensorflow_datasets={'sources', 'prepared'},
    sentencepiece={'vocabulary'},
    tokenizers={'vocabulary'}, array_record={'sources', 'prepared'}, orbax={'storage'}, tensorboardX={'observe'},
    qwix={'model'}, wandb={'observe'}, mlflow={'observe'}, lm_eval={'evals'}, sacrebleu={'evals'},
    rouge_score={'evals'})
WITHOUT_JAX = {'errors', 'config_type', 'nearest', 'parameters', 'rate_schedules', 'choices', 'files', 'objectives',
               'config', 'command_line', 'vocabulary', 'sources'}
# What tests/measures.py counts may not become more; the aims are those of CONTRIBUTING.md.
LIMITS = {
    'tokens per code line': 8.0, 'ternaries per 1,000 lines': 4.2, 'nested ternaries': 0,
    'comprehensions per 1,000 lines': 15.7, 'nested comprehensions': 0, 'named lambdas': 0,
    'decisions of a function': 12, 'parameters of public functions without annotation': 0,
    'files in the top folder': 12}


def name(file):
  return str(file.relative_to(ROOT / 't5like').with_suffix('')).replace('/', '.').removesuffix('.__init__')


MODULES = {name(file): file for file in FILES if file.parent != ROOT / 't5like' or file.stem != '__init__'}


def room(module):
  return module.partition('.')[0]


def imports(file):
  """Dotted names of all that a file imports, at the top or inside functions."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      yield from (a.name for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      yield from (f'{node.module}.{a.name}' for a in node.names)


def own_imports(module):
  """Modules of t5like that a module imports, packages aside."""
  names = {other.removeprefix('t5like.') for other in imports(MODULES[module]) if other.startswith('t5like.')}
  return {other for other in names if other in MODULES and other != module}


@pytest.mark.parametrize('module', MODULES)
def test_module(module):
  file = MODULES[module]
  text = file.read_text()
  assert text.count('\n') <= LINES, f'{file} has {text.count(chr(10))} lines'
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef) and (module, node.name) != ('config.base', 'base'):  # every key, no logic
      assert node.end_lineno - node.lineno < FUNCTION, f'{module}.{node.name} is too long'
  assert not re.search(r'\b(c|config)\.get\(', text), 'hidden config key'
  assert room(module) in ROOMS, f'{module} has no room: add it to ROOMS, or move it into one'
  for other in own_imports(module):
    assert ROOMS.index(room(other)) <= ROOMS.index(room(module)), f'{module} imports {other}, which is above it'
  for other in imports(file):
    homes = HOMES.get(other.partition('.')[0])
    assert homes is None or room(module) in homes, f'{module} imports {other}, which belongs into {sorted(homes)}'
    if room(module) in WITHOUT_JAX:
      assert other.partition('.')[0] not in ('jax', 'flax', 'optax'), f'{module} imports {other}'


def test_no_circle():
  graphlib.TopologicalSorter({module: own_imports(module) for module in MODULES if MODULES[module].stem != '__init__'}
                             ).prepare()


def test_top_folder_is_small():
  assert len([file for file in FILES if file.parent == ROOT / 't5like']) <= 12


def test_tests_of_a_room_stand_in_a_folder_of_its_name():
  of_the_whole = {'launch', 'faults'}  # beside the folders of markers
  rooms = {folder.name for folder in (ROOT / 't5like').iterdir() if folder.is_dir()}
  folders = {file.parent.name for file in (ROOT / 'tests').glob('*/test_*.py')}
  assert not folders - rooms - of_the_whole - set(FOLDERS_OF_MARKERS)


def test_density():
  """The limits fall until they are those of CONTRIBUTING.md; nothing may rise again."""
  now = measures.measures(measures.count(measures.working_tree()))
  assert not {key: (value, LIMITS[key]) for key, value in now.items() if value > LIMITS[key]}


def unread_keys(root):
  """Keys of config.model that no code below `root` reads as an attribute of a model's config, `c`."""
  reads = set()
  for file in (root / 't5like').rglob('*.py'):
    if file.parent.name == 'config':
      continue
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
      if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition('.')[2] == 'c':
        reads.add(node.attr)
      if isinstance(node, ast.ClassDef) and node.name == 'ModelConfig':
        reads |= {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
  source = ast.parse((root / 't5like' / 'config' / 'base.py').read_text(encoding='utf-8'))
  keys = [keyword.arg for node in ast.walk(source) if isinstance(node, ast.Assign)
          and ast.unparse(node.targets[0]) == 'c.model' for keyword in node.value.keywords]
  assert len(keys) > 20
  return [key for key in keys if key not in reads]


def test_every_key_of_the_model_is_read():
  assert not unread_keys(ROOT), 'these keys change nothing: read them, or take them out of t5like/config/base.py'


def test_one_place_takes_gradients():
  uses = [name(f) for f in FILES if 'value_and_grad(' in f.read_text()]
  assert uses == ['training.step']


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
  files = [*FILES, *(ROOT / 'benchmarks').glob('*.py'), *(ROOT / 'docs').glob('*.py'), ROOT / 'main.py']
  compared = {str(f.relative_to(ROOT)): list(_compared(ast.parse(f.read_text()))) for f in files
              if f.parent.name != 'objectives'}
  assert {f: lines for f, lines in compared.items() if lines} == {}
  for text in ("c.objective.name == 'x'", "o.name not in NAMES", "'ul2' in (x,)", "x == 'masked_lm'", "x in ('lm',)",
               "{'seq2seq': 1}[x]"):
    assert list(_compared(ast.parse(text))), text


def test_no_file_is_a_drawer():
  assert not {f.stem for f in FILES} & {'utils', 'common', 'helpers', 'misc'}


@pytest.mark.parametrize('file', sorted((ROOT / 'configs').glob('*.py')), ids=lambda f: f.stem)
def test_configs_import_only_base_and_smoke(file):
  allowed = {'ml_collections', 't5like.config', 't5like.config.base', 't5like.config.smoke', 'math'}
  assert set(imports(file)) <= allowed
  assert ast.get_docstring(ast.parse(file.read_text()))


# Modules that parse JSON without t5like/files/schema.py: what they themselves or the process that started them has
# made, or what was checked before; records of training text are read by the million, with limits of their own.
PARSERS = {'files.schema', 'files.plain_json', 'preflight.compile_ahead', 'preflight.prediction', 'storage.checkpoint',
           'prepared.parts', 'sources.files', 'vocabulary.tokenizer_json', 'vocabulary.tokenizer_export',
           'evals.tasks.make', 'selftest'}


def test_one_place_reads_json():
  parses = {name(f) for f in FILES if re.search(r'\bjson\.loads?\(|map\(json\.loads', f.read_text())}
  assert parses <= PARSERS, f'{sorted(parses - PARSERS)}: read JSON by t5like.files.schema, with a shape'


def test_nothing_foreign_is_executed():
  dangerous = re.compile(r'\bpickle\.loads?\(|\byaml\.(unsafe_)?load\(|\btorch\.load\(|(?<![\w.])eval\(|'
                         r'allow_pickle=True|shell=True|os\.system\(')
  found = {name(f): dangerous.findall(f.read_text()) for f in FILES if dangerous.search(f.read_text())}
  assert not found
  executing = [name(f) for f in FILES if re.search(r'(?<![\w.])exec\(', f.read_text())]
  assert executing == ['config.files']  # the user's config


def test_an_f_string_is_one_token_in_every_python():
  counts = measures.count({'a.py': 'x = f"{y + 1} and {y!r}"\n'})
  assert (counts.tokens, counts.lines) == (3, 1)
