"""From a task to the questions that a model is asked: its items, with examples before them."""
import dataclasses
import pathlib
import string
from typing import Any

from t5like.choices import SOURCES
from t5like.config import templates
from t5like.config.task_files import Task
from t5like.config.values import base
from t5like.errors import ConfigError, DataError
from t5like.files import schema
from t5like.prepared import examples
from t5like.sources import registry

OBJECTS = 'Each line must hold a JSON object with the fields of an item.'
LINES = schema.Limits(unique=False, constants=True)
MOST = schema.Limits(size=1 << 30)
Item = dict[str, Any]  # {field: plain value}
Texts = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Question:
  """What is asked of one item.

  Attributes:
    before: texts before each answer.
    answers: those to choose from or, else, the right one only.
    after: texts after each answer.
    right: number of the right answer.
    lengths: characters of each choice, for normalising.
    references: texts that generated ones are compared with.
  """
  before: Texts
  answers: Texts
  after: Texts
  right: int = 0
  lengths: tuple[int, ...] = ()
  references: Texts = ()

  @property
  def choices(self) -> list[tuple[str, str, str]]:
    """(before, answer, after) of each choice."""
    texts = zip(self.before, self.answers, self.after)
    return list(texts)

  @property
  def first(self) -> tuple[str, str, str]:
    """(before, answer, after) of a question that is no choice."""
    return (
        self.before[0],
        self.answers[0],
        self.after[0],
    )


def records(task: Task) -> list[Item]:
  """The items of a task. DataError when they are not there."""
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
  values = schema.records(
      content,
      schema.Object(),
      f'task {task.name}: {path}',
      DataError,
      OBJECTS,
      LINES,
  )
  if not values:
    raise DataError(f'task {task.name}: {path} holds no items. {OBJECTS}')
  return values


def _of_source(task: Task, name: str) -> list[Item]:
  """The items of a data.source."""
  config: Any = base()
  config.data.update(
      source=name,
      split=task.split,
      validation_fraction=task.held_out,
  )
  source = registry.open_source(config)
  items = []
  for record, where in source.documents():
    if isinstance(record, DataError):
      raise record
    if not task.held_out or _is_held_out(task, record, where, config):
      items.append(record)
  if not items:
    raise DataError(f'task {task.name}: none of the items of {name} is held out. Raise held_out={task.held_out}.')
  return items


def _is_held_out(
    task: Task,
    record: Item,
    where: str,
    config: Any,
) -> bool:
  """Whether training with data.inputs=`before` and data.targets=`answer` leaves an item to validation."""
  if task.kind == 'perplexity':
    text = templates.fill('text', task.text, record, where)
    texts: Texts = (text,)
  else:
    question = _question(task, record, where)
    right = question.right
    texts = (question.before[right], question.answers[right])
  first, *_ = examples.split_example(texts, '', config)
  split, *_ = first
  return split == 'validation'


def questions(task: Task, shots: int = -1, limit: int = 0) -> list[Question]:
  """The questions of a task.

  Args:
    task: the task.
    shots: worked examples before each question; -1: as many as the task says.
    limit: of questions; 0: all items.

  Raises:
    ConfigError: the task does not hold back that many examples.
    DataError: its items are missing, or are not what its templates need.
  """
  items = records(task)
  numbered = list(enumerate(items))
  most = limit or None
  if task.kind == 'perplexity':
    return [_text_alone(task, number, item) for number, item in numbered[:most]]
  if shots < 0:
    shots = task.shots
  held = min(task.reserved, len(items) - 1)
  if shots > held:
    raise ConfigError(f'--shots={shots}: the task {task.name} holds {held} items back for examples (`reserved`). Use '
                      'at most that.')
  worked = _questions_of(task, numbered[:shots])
  start = _demonstrations(task, worked)
  with_shots = []
  for question in _questions_of(task, numbered[held:][:most]):
    before = tuple(start + text for text in question.before)
    with_shots.append(dataclasses.replace(question, before=before))
  return with_shots


def _text_alone(
    task: Task,
    number: int,
    item: Item,
) -> Question:
  where = _where(task, number)
  text = templates.fill('text', task.text, item, where)
  return Question(
      before=('',),
      answers=(text,),
      after=('',),
  )


def _questions_of(task: Task, numbered: list[tuple[int, Item]]) -> list[Question]:
  """The questions of numbered items, without examples before them."""
  alone = []
  for number, item in numbered:
    where = _where(task, number)
    alone.append(_question(task, item, where))
  return alone


def _demonstrations(task: Task, worked: list[Question]) -> str:
  """What stands before each question: the task's description and questions with their right answers."""
  text = ''
  if task.description:
    text = task.description + task.separator
  for question in worked:
    before, answer, after = question.choices[question.right]
    text += before + answer + after + task.separator
  return text


def _where(task: Task, number: int) -> str:
  return f'task {task.name}, item {number + 1}'


def _question(
    task: Task,
    item: Item,
    where: str,
) -> Question:
  if task.kind == 'choice':
    return _choice(task, item, where)
  before, answer, after = _filled(task, item, where)
  references = _references(task, item, answer, where)
  return Question(
      before=(before,),
      answers=(answer,),
      after=(after,),
      references=tuple(map(str.strip, references)),
  )


def _filled(
    task: Task,
    item: Item,
    where: str,
) -> tuple[str, str, str]:
  """(before, answer, after) of an item."""
  return (
      templates.fill('before', task.before, item, where),
      templates.fill('answer', task.answer, item, where),
      templates.fill('after', task.after, item, where),
  )


def _references(
    task: Task,
    item: Item,
    answer: str,
    where: str,
) -> list[str]:
  """What generated texts are compared with: the field `references`, the answer where the task names none."""
  if not task.references:
    return [answer]
  named = item.get(task.references)
  if isinstance(named, str) and named:
    return [named]
  if isinstance(named, list) and named:
    return list(map(str, named))
  raise DataError(f'{where}: the field references={schema.show(task.references)} must hold a text or a list of '
                  'texts.')


def _choice(
    task: Task,
    item: Item,
    where: str,
) -> Question:
  choices = _choices(task, item, where)
  right = _right(task, item, choices, where)
  filled = []
  lengths = []
  for choice in choices:
    item_of_choice = dict(item, choice=choice)
    filled.append(_filled(task, item_of_choice, where))
    lengths.append(len(str(choice)))
  before, answers, after = zip(*filled)
  return Question(
      before=before,
      answers=answers,
      after=after,
      right=right,
      lengths=tuple(lengths),
  )


def _choices(
    task: Task,
    item: Item,
    where: str,
) -> list[Any]:
  """What a question lets choose from: what the task lists, or the field that it names."""
  if isinstance(task.choices, tuple):
    choices: Any = list(task.choices)
  else:
    choices = item.get(task.choices)
  if not isinstance(choices, list) or len(choices) < 2:
    raise DataError(f'{where}: the field choices={schema.show(task.choices)} must hold a list of at least two texts.')
  return choices


def _right(
    task: Task,
    item: Item,
    choices: list[Any],
    where: str,
) -> int:
  """The number of the right choice, which an item gives as its number, text or letter."""
  label = item.get(task.label)
  right = label
  if isinstance(label, str):
    letters = list(string.ascii_uppercase[:len(choices)])
    if label in choices:
      right = choices.index(label)
    elif label in letters:
      right = letters.index(label)
  if not isinstance(right, int) or not 0 <= right < len(choices):
    raise DataError(f'{where}: the field label={schema.show(task.label)} holds {schema.show(label)}; it '
                    f'must be the number of the right choice, 0 to {len(choices) - 1}, its letter or its text.')
  return right
