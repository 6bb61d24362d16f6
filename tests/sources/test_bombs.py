"""Compressed files that unpack to far more than they are: given up with a sentence, in bounded memory."""
import bz2
import gzip
import json
import lzma
import subprocess
import sys

import pytest
import zstandard

from t5like.errors import DataError
from t5like.sources import files, reading
from tests.conftest import ROOT

PACK = {'gz': gzip.compress, 'bz2': bz2.compress, 'xz': lzma.compress, 'zst': zstandard.ZstdCompressor().compress}


def bomb(path, megabytes):
  """Megabytes of one letter, a frame each."""
  path.write_bytes(PACK[path.suffix[1:]](b'a' * (1 << 20)) * megabytes)


@pytest.mark.parametrize('ending', PACK)
@pytest.mark.parametrize('read', [files.text, files.jsonl])
def test_bombs(read, ending, tmp_path, monkeypatch):
  monkeypatch.setattr(reading, 'BOMB', 8 << 20)
  bomb(tmp_path / f'x.{ending}', 12)
  parts = read('x', str(tmp_path / '*'))
  with pytest.raises(DataError, match='unpacks to more than 100 times its size'):
    for item in parts.items:
      list(parts.read(item))


@pytest.mark.slow
@pytest.mark.parametrize('ending', PACK)
@pytest.mark.parametrize('kind', ['text', 'jsonl'])
def test_memory_that_bombs_take(kind, ending, tmp_path):
  bomb(tmp_path / f'x.{ending}', 600)
  script = f"""if True:
    import resource
    from t5like.sources import files
    from t5like.errors import DataError
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parts = files.{kind}('x', {str(tmp_path / '*')!r})
    try:
      for item in parts.items:
        list(parts.read(item))
    except DataError as error:
      print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)"""
  kilobytes, _, message = subprocess.check_output([sys.executable, '-c', script], cwd=ROOT, text=True).partition(' ')
  assert int(kilobytes) < 800_000 and 'unpacks to more than 100 times its size' in message


@pytest.mark.parametrize('ending', PACK)
def test_text_that_repeats_itself_is_read(ending, tmp_path):
  lines = ''.join(json.dumps(dict(text=f'{i} the same again and again')) + '\n' for i in range(5_000))
  (tmp_path / f'x.jsonl.{ending}').write_bytes(PACK[ending](lines.encode()))
  parts = files.jsonl('x', str(tmp_path / '*'))
  records = [record for item in parts.items for record, _ in parts.read(item)]
  assert len(records) == 5_000 and not any(isinstance(record, DataError) for record in records)


@pytest.mark.parametrize('line, problem', [
    (rb'{"text": "\ud800"}', 'half of a surrogate pair'), (rb'{"\udfff": 1, "text": "x"}', 'half of a surrogate pair'),
    (b'[' * 100_000, 'is not JSON: maximum recursion'), (b'{"text": ' + b'9' * 5000 + b'}', 'is not JSON: Exceeds'),
    (b'[' + b'{},' * 6_000_000 + b'{}]', 'holds more than 4,000,000 values'),
])
def test_hostile_lines_are_damaged_records(line, problem, tmp_path):
  (tmp_path / 'x.jsonl').write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "\\ud83d\\ude00"}\n')
  parts = files.jsonl('x', str(tmp_path / '*'))
  first, damaged, last = [record for item in parts.items for record, _ in parts.read(item)]
  assert isinstance(damaged, DataError) and 'line 2' in str(damaged) and problem in str(damaged)
  assert (first, last) == (dict(text='a'), dict(text='\U0001f600'))
