"""From a task to the questions that a model is asked: its items, with examples before them."""
import dataclasses
import pathlib
import string

from t5like.config import templates
from t5like.config.rules import SOURCES
from t5like.config.values import base
from t5like.errors import ConfigError, DataError
from t5like.files import schema
from t5like.prepared import examples
from t5like.sources import registry

OBJECTS = 'Each line must hold a JSON object with the fields of an item.'
LINES = schema.Limits(unique=False, constants=True)
MOST = schema.Limits(size=1 << 30)


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


def records(task):
  """The items of a task, [dict]. DataError when they are not there."""
  name = task.items or f'{task.name}.jsonl'
  if name.partition(':')[0] in SOURCES:
    return _of_source(task, name)
  path = pathlib.Path(task.folder) / name
  try:
    content = schema.content(path, MOST)
  except FileNotFoundError as error:
    raise DataError(f'task {task.name}: its items cannot be read ({error}).') from error
  except schema.Invalid as error:
    raise DataError(schema.sentence(f'task {task.name}: the file of its items, {path},', error)) from error
  values = schema.records(content, schema.Object(), f'task {task.name}: {path}', DataError, OBJECTS, LINES)
  if not values:
    raise DataError(f'task {task.name}: {path} holds no items. {OBJECTS}')
  return values


def _of_source(task, name):
  config = base()
  config.data.update(source=name, split=task.split, validation_fraction=task.held_out)
  found = []
  for record, where in registry.open_source(config).documents():
    if isinstance(record, DataError):
      raise record
    if not task.held_out or _is_held_out(task, record, where, config):
      found.append(record)
  if not found:
    raise DataError(f'task {task.name}: none of the items of {name} is held out. Raise held_out={task.held_out}.')
  return found


def _is_held_out(task, record, where, config):
  """Whether training with data.inputs=`before` and data.targets=`answer` leaves an item to validation."""
  if task.kind == 'perplexity':
    texts = (templates.fill('text', task.text, record, where),)
  else:
    question = _question(task, record, where)
    texts = question.before[question.right], question.answers[question.right]
  return examples.split_example(texts, '', config)[0][0] == 'validation'


def questions(task, shots=-1, limit=0):
  """[Question] of a task: of all its items, or of the first `limit`; shots -1: as many as the task says."""
  items = records(task)
  if task.kind == 'perplexity':
    return [Question(('',), (templates.fill('text', task.text, item, _where(task, i)),), ('',))
            for i, item in enumerate(items[:limit or None])]
  shots, held = task.shots if shots < 0 else shots, min(task.reserved, len(items) - 1)
  if shots > held:
    raise ConfigError(f'--shots={shots}: the task {task.name} holds {held} items back for examples (`reserved`). Use '
                      'at most that.')
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
      raise DataError(f'{where}: the field references={schema.show(task.references)} must hold a text or a list of '
                      'texts.')
    references = texts[1] if named is None else (named,) if isinstance(named, str) else tuple(map(str, named))
    return Question(*texts, references=tuple(text.strip() for text in references))
  listed = isinstance(task.choices, tuple)
  choices, right = list(task.choices) if listed else item.get(task.choices), item.get(task.label)
  if not isinstance(choices, list) or len(choices) < 2:
    raise DataError(f'{where}: the field choices={schema.show(task.choices)} must hold a list of at least two texts.')
  if isinstance(right, str) and right in choices:
    right = choices.index(right)
  elif isinstance(right, str) and right in string.ascii_uppercase[:len(choices)]:
    right = string.ascii_uppercase.index(right)
  if not isinstance(right, int) or not 0 <= right < len(choices):
    raise DataError(f'{where}: the field label={schema.show(task.label)} holds {schema.show(right)}; it '
                    f'must be the number of the right choice, 0 to {len(choices) - 1}, its letter or its text.')
  filled = [[fill(key, dict(item, choice=choice)) for key in ('before', 'answer', 'after')] for choice in choices]
  return Question(*map(tuple, zip(*filled)), right=right, lengths=tuple(len(str(choice)) for choice in choices))
