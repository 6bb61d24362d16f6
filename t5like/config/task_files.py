"""Tasks: what is asked, as a small JSON file with templates, and the items it is asked of, as JSONL.

    {"kind": "choice", "before": "{subject}", "answer": " {choice}", "items": "agreement.jsonl"}

kind        perplexity   how well `text` is predicted
            choice       the likeliest of several answers: `choices` lists their texts or names the field that
                         does, `label` that with the number or text of the right one; each is {choice} in templates
            cloze        whether the answer is what the model would say, and its perplexity
            generate     what the model says after `before`, up to one of `until` or so many `tokens`, compared
                         with the field `references` (a text or a list), by `metrics`
before, answer, after, text   templates over the fields of an item (t5like/config/templates.py)
items       a JSONL file beside the task's, by default of its name, or any data.source, such as 'tfds:glue/sst2'
            (its `split`) or 'python_functions'
held_out    of a data.source, only the items that data.validation='hash' keeps from being trained on, where this is
            data.validation_fraction and `before` and `answer` say what data.inputs and data.targets do; 0: all items
shots       how many worked examples stand before each question, unless --shots says otherwise: the first of the
            `reserved` items, which are never asked; between them stands `separator`, before them `description`
"""
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from t5like.config.templates import check as check_template
from t5like.errors import ConfigError
from t5like.files import paths, schema
from t5like.nearest import suggestion

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'evals' / 'tasks'
KINDS = ('perplexity', 'choice', 'cloze', 'generate')
MOST_TOKENS = 65_536
METRICS = ('exact_match', 'f1', 'bleu', 'rouge')
LONGEST = 80  # characters of a value that an error shows


@dataclasses.dataclass(frozen=True)
class Task:
  """What is asked; fields as above. `name`: of its file, without .json; `folder`: of its file."""
  name: str
  kind: str
  about: str = ''
  items: str = ''
  split: str = 'validation'
  held_out: float = 0.0
  before: str = ''
  answer: str = ''
  after: str = ''
  text: str = '{text}'
  choices: str | tuple[str, ...] = 'choices'
  label: str = 'answer'
  references: str = ''
  shots: int = 0
  reserved: int = 8
  separator: str = '\n\n'
  description: str = ''
  metrics: tuple[str, ...] = ('exact_match', 'f1')
  until: tuple[str, ...] = ('\n',)
  tokens: int = 32
  folder: str = ''


def built_in() -> list[str]:
  """Names of the tasks that come with t5like, sorted."""
  return sorted(path.stem for path in FOLDER.glob('*.json'))


def _is_file(path: pathlib.Path) -> bool:
  try:
    return path.is_file()
  except (OSError, ValueError):  # a name that no file can have
    return False


def find(name: str) -> Task:
  """The Task of a name (built in) or of a path of a JSON file. ConfigError when there is none, or it is wrong."""
  path = _path(name)
  values = schema.read(path, schema.Object(), ConfigError, 'A task file is one JSON object (docs/evaluate.md).')
  for key, value in values.items():
    if key not in CHECKS:
      raise ConfigError(f'task {path}: unknown key {_show(key)}. {suggestion(key, CHECKS)}'
                        f'There is {", ".join(CHECKS)}.')
    problem = CHECKS[key](value)
    if problem:
      raise ConfigError(f'task {path}: {key}={_show(value)}{problem}')
  kind = values.get('kind')
  if kind not in KINDS:
    raise ConfigError(f'task {path}: kind={_show(kind)} is none of {", ".join(KINDS)}.')
  task = _task(path, values)
  for metric in task.metrics:
    if metric not in METRICS:
      raise ConfigError(f'task {path}: metrics has {_show(metric)}, which is none of {", ".join(METRICS)}.')
  if task.kind != 'perplexity' and not task.answer:
    raise ConfigError(f'task {path}: a task of kind={task.kind!r} needs a template `answer`, such as " {{answer}}".')
  return task


def _path(name: str) -> pathlib.Path:
  """The file of a task; ConfigError where there is none."""
  is_path = name.endswith('.json')
  path = FOLDER / f'{name}.json'
  if is_path:
    path = pathlib.Path(paths.expand(name))
  if not _is_file(path):
    kind = 'file' if is_path else 'task'
    raise ConfigError(f'task {name[:200]!r}: there is no such {kind}. {suggestion(name, built_in())}'
                      f'There are {", ".join(built_in())}, and paths of JSON files (docs/evaluate.md).')
  return path


def _task(path: pathlib.Path, values: dict[str, Any]) -> Task:
  """The Task of values that are right."""
  fields: dict[str, Any] = {}
  for key, value in values.items():
    fields[key] = tuple(value) if isinstance(value, list) else value
  return Task(path.stem, folder=str(path.parent), **fields)


# --- What values may be: what is wrong with one, as errors end, '' if nothing is --------------------


def _text(value: Any) -> str:
  return '' if isinstance(value, str) else ' must be a text.'


def _texts(value: Any) -> str:
  if isinstance(value, list) and all(isinstance(item, str) for item in value):
    return ''
  return ' must be a list of texts.'


def _text_or_texts(value: Any) -> str:
  if isinstance(value, list):
    return _texts(value)
  return _text(value)


def _template(value: Any) -> str:
  problem = _text(value)
  if problem:
    return problem
  problem = check_template(value)
  return f': {problem[:300]}' if problem else ''


def _share(value: Any) -> str:
  if isinstance(value, (int, float)) and 0 <= value < 1:
    return ''
  return ' must be a share, at least 0 and below 1.'


def _count(value: Any, least: int = 0) -> str:
  if not isinstance(value, int) or isinstance(value, bool):
    return ' must be a whole number.'
  return '' if value >= least else f' must be at least {least}.'


def _count_of_tokens(value: Any) -> str:
  problem = _count(value, least=1)
  if problem:
    return problem
  if value > MOST_TOKENS:
    return f' must be at most {MOST_TOKENS:,}, for an answer takes a pass of the model for each.'
  return ''


# Of each key of a task file.
CHECKS: dict[str, Callable[[Any], str]] = dict(
    kind=_text,
    about=_text,
    items=_text,
    split=_text,
    held_out=_share,
    before=_template,
    answer=_template,
    after=_template,
    text=_template,
    choices=_text_or_texts,
    label=_text,
    references=_text,
    shots=_count,
    reserved=_count,
    separator=_text,
    description=_text,
    metrics=_texts,
    until=_texts,
    tokens=_count_of_tokens,
)
assert {*CHECKS, 'name', 'folder'} == {field.name for field in dataclasses.fields(Task)}


def _show(value: Any) -> str:
  text = repr(value)
  if len(text) <= LONGEST:
    return text
  return f'{text[:LONGEST - 3]}...'
