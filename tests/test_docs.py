"""Pages say what is so: links lead somewhere, commands and configs are accepted, generated pages are current."""
import ast
import importlib.util
import inspect
import re
import shlex
import textwrap
from xml.etree import ElementTree

import pytest

import t5like
from t5like import choices as choices_lib, command_line, config as config_lib
from t5like.config import rules
from tests import guide
from tests.conftest import ROOT

DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md', *sorted(DOCS.glob('*.md'))]
FLAGS = {*command_line.FLAGS, 'help'}
BLOCK = re.compile(r'^```\w*\n(.*?)^```', re.M | re.S)
page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
# Names of files in pages that are the reader's, or made by programs.
MADE = {'docs/reproduced.json', 'config.py', 'my_config.py', 'novels.py', 'run.py'}


def script(name):
  """The module docs/NAME.py."""
  spec = importlib.util.spec_from_file_location(f'docs_{name}', DOCS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def anchors(text):
  """What links to headings end in, as forges and the site make it."""
  titles = re.findall(r'^#+ (.+)$', BLOCK.sub('', text), re.M)
  return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def commands_of(text):
  """Lists of words: all commands `python main.py ..` of a page, in blocks or between backticks."""
  blocks = [line for block in BLOCK.findall(text) for line in re.sub(r'\\\n\s*', ' ', block).splitlines()]
  inline = [re.sub(r'\s+', ' ', code) for code in re.findall(r'(?<!`)`([^`]+)`(?!`)', BLOCK.sub('', text))]
  for line in blocks + inline:
    for part in re.split(r'&&|\|', line):
      if 'python main.py' in part:
        yield shlex.split(part.split('python main.py')[1], comments=True)


@page
def test_links_lead_somewhere(page):
  text = page.read_text(encoding='utf-8')
  for target in re.findall(r'\]\(([^)\s]+)\)', BLOCK.sub('', text)):
    if re.match(r'[a-z]+:', target):
      continue
    path, _, anchor = target.partition('#')
    file = (page.parent / path).resolve() if path else page
    assert file.exists(), f'{page.name}: {target}'
    assert file.is_relative_to(ROOT)
    assert not anchor or anchor in anchors(file.read_text(encoding='utf-8')), f'{page.name}: {target}'


@page
def test_files_that_are_named_exist(page):
  ours = {f.name for folder in ('configs', 't5like', 'tests', 'benchmarks', 'docs', 'launch')
          for f in (ROOT / folder).rglob('*') if f.is_file()} | {f.name for f in ROOT.iterdir()}
  named = re.findall(r'[\w./-]+\.(?:py|sh|sbatch|json|md|jsonl|ipynb)\b(?![/*])',
                     re.sub(r'^ERROR.*', '', page.read_text(encoding='utf-8'), flags=re.M))
  for name in {name for name in named if not re.match(r'[/.]*(my|some|runs|models|prepared)/|gs:|.*\bNAME\b', name)}:
    if name.split('/')[0] in ('configs', 't5like', 'tests', 'benchmarks', 'docs', 'launch', 'notebooks'):
      assert (ROOT / name).exists() or name in MADE, f'{page.name} names {name}'
    elif name.endswith('.py') and '/' not in name:
      assert name in ours | MADE, f'{page.name} names {name}'


@page
def test_commands_are_accepted(page):
  for words in commands_of(page.read_text(encoding='utf-8')):
    words = [word for word in words if not word.startswith('..')]
    assert words[:1] == [] or words[0].startswith('-') or words[0] in (
        *command_line.COMMANDS, 'help', 'COMMAND', 'configs/decoder_tiny.py'), (
        f'{page.name}: {words}')
    command = words[0] if words and words[0] in command_line.COMMANDS else 'train'
    flags = dict((word[2:] + '=').split('=', 1) for word in words if word.startswith('--'))
    for flag in flags:
      assert flag in FLAGS or flag.startswith('config.'), f'{page.name}: --{flag} in {words}'
      assert flag not in FLAGS or flag in (*command_line.COMMANDS[command].flags, 'debug', 'help'), (
          f'{page.name}: --{flag} is none of {command}')
    path = flags.get('config', '').rstrip('=')
    if path and path != '...' and 'NAME' not in path and path.startswith('configs/'):
      overrides = [word[len('--config.'):] for word in words if word.startswith('--config.')]
      if not any(override.endswith('..') for override in overrides):
        config_lib.load(ROOT / path, overrides)


@page
def test_config_lines_are_accepted(page, tmp_path, monkeypatch):
  """Lines that begin with c. give a valid config, added to the defaults; whole config files do as they are."""
  file = tmp_path / 'page.py'
  (tmp_path / 'my').mkdir()
  (tmp_path / 'my' / 'task.json').write_text((ROOT / 'configs' / 'tasks' / 'function_kinds.json').read_text())
  monkeypatch.chdir(tmp_path)
  for block in BLOCK.findall(page.read_text(encoding='utf-8')):
    if 'def get_config' in block:
      file.write_text(block)
      config_lib.load(f'{file}:smoke')
    elif re.match(r'c\.\w', block):
      file.write_text("from t5like.config import base\n\ndef get_config():\n  c = base()\n  c.stop.tokens = '1T'\n"
                      + textwrap.indent(block, '  ') + '  return c\n')
    else:
      continue
    config_lib.load(file)


@page
def test_functions_in_programs_exist(page):
  for block in re.findall(r'^```python\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S):
    for node in ast.walk(ast.parse(block)):
      if isinstance(node, ast.Call) and ast.unparse(node.func).startswith('t5like.'):
        function = getattr(t5like, node.func.attr)
        inspect.signature(function).bind(*node.args, **{word.arg: word.value for word in node.keywords})


def test_examples_of_changes_can_be_made():
  """Each hunk of the diffs in docs/adding.md is found once, and all of them leave valid Python of our width."""
  changed = {}
  for file, old, new in guide.hunks(guide.GUIDE.read_text(encoding='utf-8')):
    source = changed[file] if file in changed else (ROOT / file).read_text(encoding='utf-8')
    assert source.count(old) == 1, f'{file} has not, or not once:\n{old}'
    changed[file] = source.replace(old, new)
  assert len(changed) == 15
  for file, source in changed.items():
    ast.parse(source, file)
    assert max(map(len, source.splitlines())) <= 120, file


@page
def test_variants_that_are_named_exist(page):
  for path in re.findall(r'`(?:configs/)?([a-z]\w*\.py:\w+)`', page.read_text(encoding='utf-8')):
    config_lib.load(ROOT / 'configs' / path)


def test_what_ci_runs_stands_in_the_readme():
  patterns = re.findall(r'grep -m1 ([\'"])(.*?)\1 README.md', (ROOT / '.ci' / 'run').read_text())
  assert len(patterns) > 5
  for _, pattern in patterns:
    assert re.search(pattern, (ROOT / 'README.md').read_text(), re.M), pattern


def test_commands_are_found():
  """What the tests above look at is there."""
  found = [words for page in PAGES for words in commands_of(page.read_text(encoding='utf-8'))]
  assert len(found) > 40 and ['--config=configs/decoder_tiny.py'] in found
  assert sum('c.' in block for page in PAGES for block in BLOCK.findall(page.read_text(encoding='utf-8'))) > 15
  assert {'config', 'workdir', 'prompt'} <= FLAGS


def test_objectives_and_their_pictures_are_up_to_date():
  found = script('objectives').files()
  for name, text in found.items():
    assert (DOCS / name).read_text(encoding='utf-8') == text, f'docs/{name}: run python docs/objectives.py'
  assert {f'pictures/{f.name}' for f in (DOCS / 'pictures').iterdir()} == set(found) - {'objectives.md'}


def test_the_picture_of_rooms_is_up_to_date():
  rooms = script('rooms')
  assert rooms.OUT.read_text(encoding='utf-8') == rooms.picture(), 'run python docs/rooms.py'
  order = [room for floor in rooms.floors(rooms.imports()) for room in floor]
  assert order.index('errors') < order.index('model') < order.index('training') < order.index('__main__')


def test_pictures_are_small_and_need_nothing_else():
  for file in (DOCS / 'pictures').iterdir():
    text = file.read_text(encoding='utf-8')
    tree = ElementTree.fromstring(text)
    assert tree.tag == '{http://www.w3.org/2000/svg}svg' and len(text) < 25_000, file
    assert text.count('://') == 1 and '@import' not in text and '<script' not in text, file
    width = float(tree.attrib['width'])
    for box in tree.iter('{http://www.w3.org/2000/svg}rect'):
      assert float(box.attrib['x']) + float(box.attrib['width']) < width, file


def test_colours_of_boxes_are_true():
  """What is marked as random differs from the text there, what is dashed does not count, every gap is predicted."""
  objectives, kinds = script('objectives'), set()
  for draw in range(60):
    row = objectives.make_row({'model.name': 'encoder', 'objective.name': 'masked_lm'}, draw)
    (text, boxes), _ = objectives.show(row)
    for ((whole, _),), (read, predicted) in zip(text.columns, boxes.columns):
      kinds.add(read[1])
      assert (predicted is not None) == (read[1] in ('sentinel', 'gone', 'random') and read[0] != '</s>')
      assert predicted is None or predicted[0] == whole
      assert read[1] != 'gone' or read[0] == whole
      assert read[1] != 'random' or read[0] != whole
  assert {'word', 'sentinel', 'gone', 'random'} <= kinds
  row = objectives.make_row({'objective.name': 'span_corruption'}, 7)
  (_, boxes), (grid,) = objectives.show(row)
  weights = [predicted[1] != 'ignored' for _, predicted in boxes.columns]
  assert weights == (row.batch['weights'] > 0).tolist() and 0 < sum(weights) < len(weights)
  # Inputs see all of each other, and nothing sees a target that comes after it.
  prefix = weights.index(True) + 1
  for t, cells in enumerate(grid.cells):
    assert [cell != 'unseen' for cell in cells] == [s <= t or s < prefix and t < prefix for s in range(len(cells))]


def test_keys_say_all_their_choices():
  said = dict(script('keys').keys((ROOT / 't5like' / 'config' / 'base.py').read_text(encoding='utf-8')))
  for key, choices in {**rules.CHOICES, 'data.source': choices_lib.SOURCES}.items():
    for choice in choices:
      assert re.search(rf'\b{choice}\b', said[key]), f't5like/config/base.py does not say that {key} may be {choice}'


def test_the_table_of_keys_is_up_to_date():
  table = script('keys').table()
  assert (DOCS / 'keys.md').read_text(encoding='utf-8') == table, 'run python docs/keys.py'


def test_all_pages_are_in_the_site():
  """In mkdocs.yml, which an unlisted page makes fail, and in README.md."""
  site, readme = (ROOT / 'mkdocs.yml').read_text(), (ROOT / 'README.md').read_text()
  listed = re.findall(r'^  - .+: (\S+\.md)$', site, re.M)
  assert {str(page.relative_to(ROOT)) for page in PAGES} == set(listed) - {'api.md', 'benchmarks/RESULTS.md'}
  for path in DOCS.glob('*.md'):
    assert f'](docs/{path.name})' in readme, path.name
