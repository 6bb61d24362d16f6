"""Tasks: what is asked, as a small JSON file with templates, and the items it is asked of, as JSONL.

    {"kind": "choice", "before": "{subject}", "answer": " {choice}", "items": "agreement.jsonl"}

kind        perplexity   how well `text` is predicted
            choice       the likeliest of several answers: `choices` names the field with their texts, `label`
                         that with the number of the right one; each is {choice} in the templates
            cloze        whether the answer is what the model would say, and its perplexity
            generate     what the model says after `before`, up to one of `until` or so many `tokens`, compared
                         with the field `references` (a text or a list), by `metrics`
before, answer, after, text   templates over the fields of an item (t5like/data/templates.py)
items       a JSONL file beside the task's, by default of its name; perplexity also takes any data.source, such
            as 'text:novels/*.txt' or 'tfds:wiki40b/en'
shots       how many worked examples stand before each question, unless --shots says otherwise: the first of the
            `reserved` items, which are never asked; between them stands `separator`, before them `description`
"""
import dataclasses
import difflib
import json
import pathlib
import string

from t5like.data import templates
from t5like.errors import ConfigError, DataError

FOLDER = pathlib.Path(__file__).parent / 'tasks'
KINDS = ('perplexity', 'choice', 'cloze', 'generate')
METRICS = ('exact_match', 'f1', 'bleu', 'rouge')


@dataclasses.dataclass(frozen=True)
class Task:
  name: str
  kind: str
  about: str = ''
  items: str = ''
  before: str = ''
  answer: str = ''
  after: str = ''
  text: str = '{text}'
  choices: str = 'choices'
  label: str = 'answer'
  references: str = ''
  shots: int = 0
  reserved: int = 8
  separator: str = '\n\n'
  description: str = ''
  metrics: tuple = ('exact_match', 'f1')
  until: tuple = ('\n',)
  tokens: int = 32
  folder: str = ''


@dataclasses.dataclass(frozen=True)
class Question:
  """What is asked of one item. Texts: before and after the answer; answers: those to choose from or, else, the
  right one only; right: its number, or -1; lengths: characters of each choice, for normalising; references: texts."""
  before: tuple
  answers: tuple
  after: tuple
  right: int = 0
  lengths: tuple = ()
  references: tuple = ()


def built_in():
  """Names of the tasks that come with t5like, sorted."""
  return sorted(path.stem for path in FOLDER.glob('*.json'))


def find(name):
  """The Task of a name (built in) or of a path of a JSON file. ConfigError when there is none, or it is wrong."""
  path = pathlib.Path(name) if name.endswith('.json') else FOLDER / f'{name}.json'
  if not path.is_file():
    near = difflib.get_close_matches(name, built_in(), 1)
    raise ConfigError(f'task {name!r}: there is no such ' + ('file. ' if name.endswith('.json') else 'task. ') + (
        f'Did you mean {near[0]!r}? ' if near else '') + f'There are {", ".join(built_in())}, and paths of JSON files '
        '(docs/evaluate.md).')
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ConfigError(f'task {path}: not JSON ({error}).') from error
  known = {f.name: f for f in dataclasses.fields(Task) if f.name not in ('name', 'folder')}
  for key in values if isinstance(values, dict) else ['']:
    if key not in known:
      near = difflib.get_close_matches(key, known, 1)
      raise ConfigError(f'task {path}: unknown key {key!r}. ' + (f'Did you mean {near[0]!r}? ' if near else '')
                        + f'There is {", ".join(known)}.')
    _check(path, key, values[key], known[key])
  if values.get('kind') not in KINDS:
    raise ConfigError(f'task {path}: kind={values.get("kind")!r} is none of {", ".join(KINDS)}.')
  values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
  task = Task(path.stem, folder=str(path.parent), **values)
  for metric in task.metrics:
    if metric not in METRICS:
      raise ConfigError(f'task {path}: metrics has {metric!r}, which is none of {", ".join(METRICS)}.')
  if task.kind != 'perplexity' and not task.answer:
    raise ConfigError(f'task {path}: a task of kind={task.kind!r} needs a template `answer`, such as " {{answer}}".')
  return task


def _check(path, key, value, field):
  kind = {'shots': int, 'reserved': int, 'tokens': int, 'metrics': list, 'until': list}.get(key, str)
  if not isinstance(value, kind) or kind is list and not all(isinstance(v, str) for v in value):
    wants = {int: 'a whole number', list: 'a list of texts', str: 'a text'}[kind]
    raise ConfigError(f'task {path}: {key}={value!r} must be {wants}.')
  if kind is int and value < (key == 'tokens'):
    raise ConfigError(f'task {path}: {key}={value} must be at least {int(key == "tokens")}.')
  if key in ('before', 'answer', 'after', 'text') and (problem := templates.check(value)):
    raise ConfigError(f'task {path}: {key}={value!r}: {problem}')


def records(task):
  """The items of a task, [dict]. DataError when they are not there."""
  name = task.items or f'{task.name}.jsonl'
  if ':' in name and task.kind == 'perplexity':
    return _of_source(task, name)
  path = pathlib.Path(task.folder) / name
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
    found = [json.loads(line) for line in lines if line.strip()]
  except OSError as error:
    raise DataError(f'task {task.name}: its items cannot be read ({error}).') from error
  except ValueError as error:
    raise DataError(f'task {task.name}: {path} is not JSONL ({error}).') from error
  if not found or not all(isinstance(record, dict) for record in found):
    raise DataError(f'task {task.name}: {path} must hold a JSON object with the fields of an item on each line.')
  return found


def _of_source(task, name):
  from t5like.config_values import base
  from t5like.data import sources
  config = base()
  config.data.source = name
  found = []
  for record, _ in sources.open_source(config).documents():
    if isinstance(record, DataError):
      raise record
    found.append(record)
  return found


def questions(task, shots=-1, limit=0):
  """[Question] of a task: of all its items, or of the first `limit`; shots -1: as many as the task says."""
  items = records(task)
  if task.kind == 'perplexity':
    return [Question(('',), (templates.fill('text', task.text, item, _where(task, i)),), ('',))
            for i, item in enumerate(items[:limit or None])]
  shots, held = task.shots if shots < 0 else shots, min(task.reserved, len(items) - 1)
  if shots > held:
    raise ConfigError(f'--shots={shots}: the task {task.name} holds {held} items back for examples (`reserved`). Use at '
                      'most that.')
  asked = list(enumerate(items))
  made = [_question(task, item, _where(task, i)) for i, item in asked[:shots] + asked[held:][:limit or None]]
  start = (task.description + task.separator if task.description else '') + ''.join(
      q.before[q.right] + q.answers[q.right] + q.after[q.right] + task.separator for q in made[:shots])
  return [dataclasses.replace(q, before=tuple(start + text for text in q.before)) for q in made[shots:]]


def _where(task, i):
  return f'task {task.name}, item {i + 1}'


def _question(task, item, where):
  fill = lambda key, record: templates.fill(key, getattr(task, key), record, where)
  if task.kind != 'choice':
    texts = [(fill(key, item),) for key in ('before', 'answer', 'after')]
    named = item.get(task.references) if task.references else None
    if task.references and not (isinstance(named, (str, list)) and named):
      raise DataError(f'{where}: the field references={task.references!r} must hold a text or a list of texts.')
    references = texts[1] if named is None else (named,) if isinstance(named, str) else tuple(map(str, named))
    return Question(*texts, references=tuple(text.strip() for text in references))
  choices, right = item.get(task.choices), item.get(task.label)
  if not isinstance(choices, list) or len(choices) < 2:
    raise DataError(f'{where}: the field choices={task.choices!r} must hold a list of at least two texts.')
  if isinstance(right, str) and right in choices:
    right = choices.index(right)
  elif isinstance(right, str) and right in string.ascii_uppercase[:len(choices)]:
    right = string.ascii_uppercase.index(right)
  if not isinstance(right, int) or not 0 <= right < len(choices):
    raise DataError(f'{where}: the field label={task.label!r} holds {right!r}; it must be the number of the right choice, '
                    f'0 to {len(choices) - 1}, its letter or its text.')
  filled = [[fill(key, dict(item, choice=choice)) for key in ('before', 'answer', 'after')] for choice in choices]
  return Question(*map(tuple, zip(*filled)), right=right, lengths=tuple(len(str(choice)) for choice in choices))
