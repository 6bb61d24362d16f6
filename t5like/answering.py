"""Prompts from a file or the command line to answers in a file or on the terminal."""
import json
import os
import pathlib
import sys

from t5like.errors import ConfigError, DataError

FIELDS = ('prompt', 'text', 'inputs')  # of a record that may hold its prompt, the first that is there


def answer_file(run, source, out, rows=16, say=print, **how):
  """Writes each record of the JSONL file `source` with its `answer` to `out`, in the same order.

  run: a loaded.Loaded; rows: prompts that are decoded together; how: arguments of decode.stream. A batch is on disk
  before the next begins. Where `out` holds answers already, the work goes on after them, and ends as if it had
  never stopped. ConfigError when they are answers to other prompts, or for records without a prompt.
  """
  prompts, records = _prompts(source)
  done = _done(out, records)
  if done:
    say(f'{out} holds {done:,} answers already; going on after them.')
  with open(out, 'a', encoding='utf-8') as f:
    for start in range(done, len(prompts), rows):
      some = range(start, min(start + rows, len(prompts)))
      # Rows that fill up the batch keep its shape, so that it need not be compiled for another.
      padded = [prompts[i] for i in some] + [prompts[some[-1]]] * (rows - len(some))
      answers = run.generate(padded, seeds=[*some, *[0] * (rows - len(some))], **how)
      for i, answer in zip(some, answers):
        f.write(json.dumps(dict(records[i], answer=answer), ensure_ascii=False) + '\n')
      f.flush()
      os.fsync(f.fileno())
      say(f'{some[-1] + 1:,} of {len(prompts):,}')
  return len(prompts)


def _prompts(source):
  """(prompts, records) of a JSONL file."""
  try:
    lines = pathlib.Path(source).read_text(encoding='utf-8').split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f'--input={source}: cannot be read ({error}).') from error
  records = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError as error:
      raise DataError(f'--input={source}: line {number} is not JSON ({error}). Each line must be an object such as '
                      '{"prompt": "def read("}.') from error
    record = dict(prompt=record) if isinstance(record, str) else record
    if not isinstance(record, dict) or not isinstance(_prompt(record), str):
      raise DataError(f'--input={source}: line {number} has no prompt. Each line must be an object such as '
                      '{"prompt": "def read("}.')
    records.append(record)
  if not records:
    raise DataError(f'--input={source}: holds no prompts.')
  return [_prompt(record) for record in records], records


def _prompt(record):
  return next((record[field] for field in FIELDS if field in record), None)


def _done(out, records):
  """How many answers `out` holds; a last line that was cut off while it was written is taken away."""
  out = pathlib.Path(out)
  if not out.exists():
    return 0
  content = out.read_bytes()
  whole = content[:content.rfind(b'\n') + 1]
  lines = whole.decode('utf-8').splitlines() if whole else []
  for number, line in enumerate(lines):
    try:
      answered = json.loads(line)
      same = number < len(records) and {k: v for k, v in answered.items() if k != 'answer'} == {
          k: v for k, v in records[number].items() if k != 'answer'}
    except (ValueError, AttributeError):
      same = False
    if not same:
      raise ConfigError(f'--output={out}: line {number + 1} is not an answer to line {number + 1} of --input, so the '
                        'work cannot go on there, and nothing was changed. Give another --output.')
  if len(whole) < len(content):
    with open(out, 'r+b') as f:
      f.truncate(len(whole))
  return len(lines)


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
