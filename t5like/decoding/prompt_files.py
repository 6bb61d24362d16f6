"""Prompts from a file or the command line to answers in a file or on the terminal."""
import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from t5like.errors import CheckpointError, ConfigError, DataError
from t5like.files import plain_json, schema

FIELDS = ('prompt', 'text', 'inputs')  # of a record that may hold its prompt; the first one present
ADDED = ('answer', 'generation')  # fields of an answered record: its answer; the checkpoint and options that made it
EXAMPLE = 'Each line must be an object such as {"prompt": "def read("}.'
BYTE_ORDER_MARK = b'\xef\xbb\xbf'
LINES = schema.Limits(unique=False, constants=True)
FILE = schema.Limits(size=1 << 30)
Record = dict[str, Any]


def answer_file(
    run: Any,
    source: str,
    out: str,
    rows: int = 16,
    say: Callable[[str], None] = print,
    **options: Any,
) -> int:
  """Writes each record of a JSONL file with its `answer` to another, in the same order.

  A field `generation` holds the step of the checkpoint and the options that made the answer. A batch is on disk before
  the next begins. Where `out` holds answers already, the work resumes after them, and ends as if it had never stopped.

  Args:
    run: a loaded.Loaded.
    source: the file of prompts.
    out: the file of answers.
    rows: prompts that are decoded together.
    say: called with lines for people.
    **options: arguments of decode.stream.

  Returns:
    How many answers `out` holds.

  Raises:
    ConfigError: when `out` holds answers to other prompts, or of another checkpoint or other options.
    DataError: for records without a prompt.
    CheckpointError: where `out` cannot be written.
  """
  records = _records(source)
  generation = dict(step=run.step, **options)
  done, size = _done(out, records, generation)
  if done:
    say(f'{out} holds {done:,} answers already; resuming after them.')
  with _appending(out, size) as f:
    for start in range(done, len(records), rows):
      numbers = list(range(start, min(start + rows, len(records))))
      answers = _answer(run, records, numbers, rows, options)
      for number, answer in zip(numbers, answers):
        line = plain_json.dumps(dict(records[number], answer=answer, generation=generation), ensure_ascii=False)
        f.write(line.encode() + b'\n')
      f.flush()
      os.fsync(f.fileno())
      say(f'{numbers[-1] + 1:,} of {len(records):,}')
  return len(records)


def _answer(
    run: Any,
    records: list[Record],
    numbers: list[int],
    rows: int,
    options: dict[str, Any],
) -> list[str]:
  """Answers to the records of these numbers, in a batch of `rows`; the number of a record is its seed."""
  prompts = [_prompt(records[number]) for number in numbers]
  # Rows that fill up the batch keep its shape, so that it need not be compiled for another.
  missing = rows - len(numbers)
  prompts += [prompts[-1]] * missing
  seeds = numbers + [0] * missing
  return run.generate(prompts, seeds=seeds, **options)


@contextlib.contextmanager
def _appending(out: str, size: int) -> Iterator[BinaryIO]:
  """A file to append to after its first `size` bytes. CheckpointError where it cannot be written."""
  try:
    with open(out, 'ab') as f:
      f.truncate(size)
      yield f
  except OSError as error:
    raise CheckpointError(f'--output={out}: cannot be written ({error}). The answers that it holds stay, and the same '
                          'command resumes after them.') from error


def check(source: str, out: str, options: dict[str, Any] | None = None) -> None:
  """Reads a file of prompts and the answers in `out`: the errors of `answer_file`, before a model is loaded.

  Args:
    source: the file of prompts.
    out: the file of answers.
    options: of decode.stream, and `step` where it is known.
  """
  _done(out, _records(source), options or {})
  if '://' not in str(out) and not pathlib.Path(out).absolute().parent.is_dir():
    raise ConfigError(f'--output={out}: its folder does not exist. Make it, or give another --output.')


def check_prompts(prompts: Sequence[str]) -> None:
  """ConfigError for prompts of a command line that are not UTF-8."""
  for prompt in prompts:
    try:
      prompt.encode()
    except UnicodeEncodeError as error:
      raise ConfigError(f'--prompt={prompt!r}: {prompt[error.start]!r} is no character but half of one, or a byte that '
                        'is not UTF-8. Give text as UTF-8.') from error


def _records(source: str) -> list[Record]:
  """The records of a JSONL file, each of which has a prompt. DataError."""
  try:
    content = schema.content(source, FILE)
  except FileNotFoundError as error:
    raise DataError(f'--input={source}: cannot be read ({error}).') from error
  except schema.Invalid as error:
    raise DataError(schema.sentence(f'--input={source}:', error)) from error
  records = []
  for number, line in enumerate(content.removeprefix(BYTE_ORDER_MARK).split(b'\n'), 1):
    if line.strip():
      records.append(_record(line, f'--input={source}: line {number}'))
  if not records:
    raise DataError(f'--input={source}: holds no prompts.')
  return records


def _record(line: bytes, name: str) -> Record:
  """The record of a line; one that is a text alone is its prompt. `name`: of the line, in DataError."""
  try:
    record = schema.parse(line, limits=LINES)
  except schema.Invalid as error:
    raise DataError(f'{name} {error}. {EXAMPLE}') from error
  if isinstance(record, str):
    record = dict(prompt=record)
  if not isinstance(record, dict) or not isinstance(_prompt(record), str):
    raise DataError(f'{name} has no prompt. {EXAMPLE}')
  return record


def _prompt(record: Record) -> Any:
  for field in FIELDS:
    if field in record:
      return record[field]
  return None


def _done(out: str, records: list[Record], generation: dict[str, Any]) -> tuple[int, int]:
  """(how many answers `out` holds, how many bytes they are); a last line that was cut off does not count.

  ConfigError for answers to other records, or made with other values of the options in `generation`.
  """
  path = pathlib.Path(out)
  if not path.exists():
    return 0, 0
  if not path.is_file():  # a device never ends
    raise ConfigError(f'--output={out}: is no regular file. Give another --output.')
  content = path.read_bytes()
  whole = content[:content.rfind(b'\n') + 1]
  lines = whole.split(b'\n')[:-1]
  for number, line in enumerate(lines):
    answered = _answered(line)
    if number >= len(records) or answered is None or _without_answer(answered) != _without_answer(records[number]):
      raise ConfigError(f'--output={out}: line {number + 1} is not an answer to line {number + 1} of --input, so the '
                        'work cannot resume there, and nothing was changed. Give another --output.')
    _check_same_options(f'--output={out}: line {number + 1}', answered, generation)
  return len(lines), len(whole)


def _answered(line: bytes) -> Record | None:
  """The record of a line, if it has an answer."""
  try:
    record = schema.parse(line, limits=LINES)
  except schema.Invalid:
    return None
  if not isinstance(record, dict) or not isinstance(record.get('answer'), str):
    return None
  return record


def _without_answer(record: Record) -> Record:
  return {key: value for key, value in record.items() if key not in ADDED}


def _check_same_options(where: str, answered: Record, generation: dict[str, Any]) -> None:
  written = answered.get('generation')
  if not isinstance(written, dict):
    written = {}  # of a version that did not write it
  for name, value in generation.items():
    if name in written and written[name] != value:
      raise ConfigError(f'{where} was made with {name}={written[name]} and not with {value}: answers of both cannot '
                        f'stand in one file, and nothing was changed. Give another --output, or --{name}='
                        f'{written[name]} to resume.')


def show_stream(
    run: Any,
    prompt: str,
    between: str = '',
    out: Any = None,
    **options: Any,
) -> str:
  """Prints a prompt and its answer while it is made.

  Args:
    run: a loaded.Loaded.
    prompt: the text to continue or answer.
    between: is printed between the prompt and the answer.
    out: the stream; None: the terminal.
    **options: arguments of decode.stream.

  Returns:
    The answer.
  """
  out = out or sys.stdout
  out.write(prompt + between)
  out.flush()
  shown = ''
  text = ''
  for (text,) in run.stream([prompt], **options):
    complete = text.rstrip('\ufffd')  # bytes of a character whose others are still to come
    if complete.startswith(shown):
      out.write(complete[len(shown):])
      shown = complete
      out.flush()
  rest = text[len(shown):] if text.startswith(shown) else f'\n{text}'
  out.write(f'{rest}\n')
  out.flush()
  return text
