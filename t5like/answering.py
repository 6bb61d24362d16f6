"""Prompts from a file or the command line to answers in a file or on the terminal."""
import contextlib
import os
import pathlib
import sys

from t5like import plain_json, schema
from t5like.errors import CheckpointError, ConfigError, DataError

FIELDS = ('prompt', 'text', 'inputs')  # of a record that may hold its prompt, the first that is there
EXAMPLE = 'Each line must be an object such as {"prompt": "def read("}.'
LINES = schema.Limits(unique=False, constants=True)
MOST = schema.Limits(size=1 << 30)


def answer_file(run, source, out, rows=16, say=print, **how):
  """Writes each record of the JSONL file `source` with its `answer` to `out`, in the same order.

  run: a loaded.Loaded; rows: prompts that are decoded together; how: arguments of decode.stream. A batch is on disk
  before the next begins. Where `out` holds answers already, the work resumes after them, and ends as if it had
  never stopped. ConfigError when they are answers to other prompts, or for records without a prompt.
  """
  prompts, records = _prompts(source)
  done, size = _done(out, records)
  if done:
    say(f'{out} holds {done:,} answers already; resuming after them.')
  with _appending(out, size) as f:
    for start in range(done, len(prompts), rows):
      some = range(start, min(start + rows, len(prompts)))
      # Rows that fill up the batch keep its shape, so that it need not be compiled for another.
      padded = [prompts[i] for i in some] + [prompts[some[-1]]] * (rows - len(some))
      answers = run.generate(padded, seeds=[*some, *[0] * (rows - len(some))], **how)
      for i, answer in zip(some, answers):
        f.write(plain_json.dumps(dict(records[i], answer=answer), ensure_ascii=False).encode() + b'\n')
      f.flush()
      os.fsync(f.fileno())
      say(f'{some[-1] + 1:,} of {len(prompts):,}')
  return len(prompts)


@contextlib.contextmanager
def _appending(out, size):
  """A file to append to after its first `size` bytes. CheckpointError where it cannot be written."""
  try:
    with open(out, 'ab') as f:
      f.truncate(size)
      yield f
  except OSError as error:
    raise CheckpointError(f'--output={out}: cannot be written ({error}). The answers that it holds stay, and the same '
                          'command resumes after them.') from error


def check(source, out):
  """Reads a file of prompts and what `out` holds already: the errors of `answer_file`, before a model is loaded."""
  _, records = _prompts(source)
  _done(out, records)
  if '://' not in str(out) and not pathlib.Path(out).absolute().parent.is_dir():
    raise ConfigError(f'--output={out}: its folder does not exist. Make it, or give another --output.')


def check_prompts(prompts):
  """Refuses prompts of a command line that are not UTF-8. ConfigError."""
  for prompt in prompts:
    try:
      prompt.encode()
    except UnicodeEncodeError as error:
      raise ConfigError(f'--prompt={prompt!r}: {prompt[error.start]!r} is no character but half of one, or a byte that '
                        'is not UTF-8. Give text as UTF-8.') from error


def _prompts(source):
  """(prompts, records) of a JSONL file."""
  try:
    content = schema.content(source, MOST)
  except FileNotFoundError as error:
    raise DataError(f'--input={source}: cannot be read ({error}).') from error
  except schema.Invalid as error:
    raise DataError(schema.sentence(f'--input={source}:', error)) from error
  records = []
  for number, line in enumerate(content.removeprefix(b'\xef\xbb\xbf').split(b'\n'), 1):
    if not line.strip():
      continue
    try:
      record = schema.parse(line, limits=LINES)
    except schema.Invalid as error:
      raise DataError(f'--input={source}: line {number} {error}. {EXAMPLE}') from error
    record = dict(prompt=record) if isinstance(record, str) else record
    if not isinstance(record, dict) or not isinstance(_prompt(record), str):
      raise DataError(f'--input={source}: line {number} has no prompt. {EXAMPLE}')
    records.append(record)
  if not records:
    raise DataError(f'--input={source}: holds no prompts.')
  return [_prompt(record) for record in records], records


def _prompt(record):
  return next((record[field] for field in FIELDS if field in record), None)


def _done(out, records):
  """(how many answers `out` holds, how many bytes they are); a last line that was cut off does not count."""
  out = pathlib.Path(out)
  if not out.exists():
    return 0, 0
  if not out.is_file():  # a device never ends
    raise ConfigError(f'--output={out}: is no regular file. Give another --output.')
  content = out.read_bytes()
  whole = content[:content.rfind(b'\n') + 1]
  lines = whole.split(b'\n')[:-1]
  for number, line in enumerate(lines):
    if number >= len(records) or not _answers(line, records[number]):
      raise ConfigError(f'--output={out}: line {number + 1} is not an answer to line {number + 1} of --input, so the '
                        'work cannot resume there, and nothing was changed. Give another --output.')
  return len(lines), len(whole)


def _answers(line, record):
  """Whether a line of bytes is a record with an answer."""
  try:
    answered = schema.parse(line, limits=LINES)
  except schema.Invalid:
    return False
  rest = lambda values: {key: value for key, value in values.items() if key != 'answer'}
  return isinstance(answered, dict) and isinstance(answered.get('answer'), str) and rest(answered) == rest(record)


def show_stream(run, prompt, between='', out=None, **how):
  """Prints a prompt and its answer to `out` (the terminal) while it is made; returns the answer."""
  out, shown = out or sys.stdout, ''
  out.write(prompt + between)
  out.flush()
  for (text,) in run.stream([prompt], **how):
    known = text.rstrip('\ufffd')  # bytes of a character whose others are still to come
    if known.startswith(shown):
      out.write(known[len(shown):])
      shown = known
      out.flush()
  out.write(text[len(shown):] if text.startswith(shown) else f'\n{text}')
  out.write('\n')
  out.flush()
  return text
