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

from t5like.config import templates
from t5like.errors import ConfigError
from t5like.files import paths, schema
from t5like.nearest import suggestion

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'evals' / 'tasks'
KINDS = ('perplexity', 'choice', 'cloze', 'generate')
MOST_TOKENS = 65_536
METRICS = ('exact_match', 'f1', 'bleu', 'rouge')


@dataclasses.dataclass(frozen=True)
class Task:
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
  choices: str | tuple = 'choices'
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


def built_in():
  """Names of the tasks that come with t5like, sorted."""
  return sorted(path.stem for path in FOLDER.glob('*.json'))


def _is_file(path):
  try:
    return path.is_file()
  except (OSError, ValueError):  # a name that no file can have
    return False


def find(name):
  """The Task of a name (built in) or of a path of a JSON file. ConfigError when there is none, or it is wrong."""
  path = pathlib.Path(paths.expand(name)) if name.endswith('.json') else FOLDER / f'{name}.json'
  if not _is_file(path):
    kind = 'file' if name.endswith('.json') else 'task'
    raise ConfigError(f'task {name[:200]!r}: there is no such {kind}. {suggestion(name, built_in())}'
                      f'There are {", ".join(built_in())}, and paths of JSON files (docs/evaluate.md).')
  values = schema.read(path, schema.Object(), ConfigError, 'A task file is one JSON object (docs/evaluate.md).')
  known = {f.name: f for f in dataclasses.fields(Task) if f.name not in ('name', 'folder')}
  for key in values:
    if key not in known:
      raise ConfigError(f'task {path}: unknown key {_show(key)}. {suggestion(key, known)}'
                        f'There is {", ".join(known)}.')
    _check(path, key, values[key], known[key])
  if values.get('kind') not in KINDS:
    raise ConfigError(f'task {path}: kind={_show(values.get("kind"))} is none of {", ".join(KINDS)}.')
  values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
  task = Task(path.stem, folder=str(path.parent), **values)
  for metric in task.metrics:
    if metric not in METRICS:
      raise ConfigError(f'task {path}: metrics has {_show(metric)}, which is none of {", ".join(METRICS)}.')
  if task.kind != 'perplexity' and not task.answer:
    raise ConfigError(f'task {path}: a task of kind={task.kind!r} needs a template `answer`, such as " {{answer}}".')
  return task


def _check(path, key, value, field):
  kind = {'shots': int, 'reserved': int, 'tokens': int, 'metrics': list, 'until': list, 'held_out': float}.get(key, str)
  kind = list if key == 'choices' and isinstance(value, list) else kind
  if kind is float and not (isinstance(value, (int, float)) and 0 <= value < 1):
    raise ConfigError(f'task {path}: {key}={_show(value)} must be a share, at least 0 and below 1.')
  if kind is not float and (not isinstance(value, kind) or isinstance(value, bool) or kind is list and not all(
      isinstance(v, str) for v in value)):
    wants = {int: 'a whole number', list: 'a list of texts', str: 'a text'}[kind]
    raise ConfigError(f'task {path}: {key}={_show(value)} must be {wants}.')
  if kind is int and value < (key == 'tokens'):
    raise ConfigError(f'task {path}: {key}={_show(value)} must be at least {int(key == "tokens")}.')
  if key == 'tokens' and value > MOST_TOKENS:
    raise ConfigError(f'task {path}: tokens={_show(value)} must be at most {MOST_TOKENS:,}, for an answer takes a '
                      'pass of the model for each.')
  if key in ('before', 'answer', 'after', 'text') and (problem := templates.check(value)):
    raise ConfigError(f'task {path}: {key}={_show(value)}: {problem[:300]}')


def _show(value):
  text = repr(value)
  return text if len(text) <= 80 else f'{text[:77]}...'
