"""Files: the same records however they are cut, here or far away, and errors that name place and fix."""
import base64
import datetime
import decimal
import gzip
import json
import os
import sys
import threading
import time

import fsspec
import hypothesis
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import strategies as st

from t5like.config import base, templates
from t5like.errors import DataError
from t5like.files import mirror
from t5like.sources import files, registry

PACK = {'': bytes, '.gz': gzip.compress, '.zst': zstandard.compress}


def open_source(source, **keys):
  c = base()
  c.data.update(source=source, **keys)
  return registry.open_source(c)


def records(source, **keys):
  return list(open_source(source, **keys).documents())


def texts(found):
  return [record['text'] for record, _ in found]


@pytest.fixture
def memory():
  """A function that writes a file of the protocol memory:// and returns its URL."""
  store = fsspec.filesystem('memory')

  def write(name, content):
    store.pipe_file(f'/t5like/{name}', content)
    return f'memory://t5like/{name}'
  yield write
  store.rm('/t5like', recursive=True)


# --- Text ---------------------------------------------------------------------------------------


def test_text_files_plain_and_compressed_sorted(tmp_path, monkeypatch):
  (tmp_path / 'deep' / 'er').mkdir(parents=True)
  (tmp_path / 'a.txt').write_text('ä\r\nb')
  (tmp_path / 'deep' / 'b.txt.gz').write_bytes(gzip.compress(b'second'))
  frames = zstandard.compress(b'thi') + zstandard.compress(b'rd')
  (tmp_path / 'deep' / 'er' / 'c.txt.zst').write_bytes(frames)
  source = open_source(f'text:{tmp_path}/**/*.txt*')
  assert texts(source.documents()) == ['ä\r\nb', 'second', 'third']
  assert list(source.documents(1, 2)) == [(dict(text='second'), f'{tmp_path}/deep/b.txt.gz')]
  assert source.num_items == 3
  json.dumps(source.fingerprint)
  (tmp_path / 'a.txt').write_text('other')
  assert open_source(f'text:{tmp_path}/**/*.txt*').fingerprint != source.fingerprint
  monkeypatch.setenv('HOME', str(tmp_path))
  assert texts(records('text:~/a.txt')) == ['other']


def test_bytes_that_are_no_text_are_a_damaged_record(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'ok\xc3(')
  (tmp_path / 'b.txt').write_bytes(b'fine')
  [(error, name), (record, _)] = records(f'text:{tmp_path}/*.txt')
  assert isinstance(error, DataError) and name == f'{tmp_path}/a.txt' and record == dict(text='fine')
  assert str(error).startswith(f'{name} is not UTF-8: byte 0xC3 at offset 2 ') and 'iconv' in str(error)


def test_no_file_matches_names_what_is_near(tmp_path):
  (tmp_path / 'corpus.jsonl').write_text('')
  with pytest.raises(DataError, match=r"data.source='jsonl:.*holds corpus.jsonl"):
    records(f'jsonl:{tmp_path}/corpsu.jsonl')
  with pytest.raises(DataError, match=f'{tmp_path} holds corpus.jsonl'):
    records(f'parquet:{tmp_path}/no/such/*/x.parquet')


@pytest.mark.parametrize('ending', ['.gz', '.zst'])
def test_damaged_compressed_files(tmp_path, ending):
  path = tmp_path / f'a.txt{ending}'
  content = PACK[ending](base64.b64encode(os.urandom(9 << 20)))
  path.write_bytes(content[:len(content) // 2])
  with pytest.raises(DataError, match=fr'a.txt{ending} cannot be read beyond byte \d{{6,}} of its text: .*end.*again'):
    records(f'text:{path}')
  path.write_bytes(b'not compressed')
  with pytest.raises(DataError, match=f'a.txt{ending} cannot be read beyond byte 0 of its text'):
    records(f'text:{path}')


def test_records_before_the_damage_of_a_file_are_read(tmp_path):
  path = tmp_path / 'a.jsonl.gz'
  lines = [json.dumps(dict(text=base64.b64encode(os.urandom(60)).decode())).encode() + b'\n' for _ in range(20_000)]
  content = gzip.compress(b''.join(lines))
  path.write_bytes(content[:len(content) * 3 // 4])
  found = []
  with pytest.raises(DataError, match='a.jsonl.gz cannot be read beyond byte'):
    for pair in open_source(f'jsonl:{path}').documents():
      found.append(pair)
  assert 14_000 < len(found) < 16_000 and texts(found)[:100] == [json.loads(line)['text'] for line in lines[:100]]


def test_files_that_vanish_or_change_while_they_are_read(tmp_path):
  for kind in ('text', 'jsonl'):
    path = tmp_path / f'a.{kind}'
    path.write_text('{"text": "a"}\n')
    source = open_source(f'{kind}:{path}')
    path.unlink()
    with pytest.raises(DataError, match=rf'a.{kind} cannot be read beyond byte 0.*No such file.*put it back'):
      list(source.documents())
  (tmp_path / 'a.jsonl').write_text('{"text": "a"}\n')
  source = open_source(f'jsonl:{tmp_path}/a.jsonl')
  (tmp_path / 'a.jsonl').write_text('{"te')
  with pytest.raises(DataError, match='a.jsonl cannot be read beyond byte 0: it has 4 bytes and had 14'):
    list(source.documents())


# --- JSON lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize('ending', list(PACK))
def test_jsonl(tmp_path, ending):
  rows = [{'text': f'line {i} é', 'body': f'body {i}'} for i in range(50_000)]
  lines = [json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in rows]
  path = tmp_path / f'a.jsonl{ending}'
  path.write_bytes(PACK[ending](b'\xef\xbb\xbf' + b''.join(lines) + b'\n'))
  found = records(f'jsonl:{path}')
  assert [record for record, _ in found] == rows
  assert found[7][1] == f'{path}@{3 + len(b"".join(lines[:7]))}'
  assert len({name for _, name in found}) == len(rows)


def test_jsonl_records_are_whole(tmp_path):
  row = {'q': 'why?', 'answers': {'text': ['a', 'b'], 'start': [1, 2]}, 'n': 1.5, 'none': None}
  (tmp_path / 'a.jsonl').write_text(json.dumps(row))
  source = open_source(f'jsonl:{tmp_path}/a.jsonl', inputs='question: {q}', targets='{answers[text][1]}')
  assert list(source.documents()) == [(row, f'{tmp_path}/a.jsonl@0')]


LINES = st.lists(st.one_of(
    st.dictionaries(st.sampled_from(['text', 'é', '日']), st.text(st.characters(codec='utf-8'), max_size=9), max_size=2)
    .map(lambda row: json.dumps(row, ensure_ascii=False).encode()),
    st.sampled_from([b'', b'  ', b'{"text": "\xff"}', b'[1]', b'{', '日本語'.encode()])), max_size=12)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(lines=LINES, end=st.sampled_from([b'\n', b'\r\n']), last=st.booleans(), step=st.integers(1, 40))
def test_ranges_of_a_file_give_what_the_whole_gives(tmp_path_factory, lines, end, last, step):
  path = tmp_path_factory.getbasetemp() / 'ranges.jsonl'
  content = end.join(lines) + (end if last else b'')
  path.write_bytes(content)
  path.with_suffix('.jsonl.gz').write_bytes(gzip.compress(content))
  files._block.cache_clear()  # the same path with other lines
  before, files.RANGE = files.RANGE, step
  try:
    source = open_source(f'jsonl:{path}')
  finally:
    files.RANGE = before
  found = list(source.documents())
  assert source.num_items == max(1, -(-len(content) // step))
  assert [pair for i in range(source.num_items) for pair in map(describe, source.documents(i, i + 1))] == [
      describe(pair) for pair in found]
  whole = [describe(pair).replace('.jsonl.gz', '.jsonl') for pair in records(f'jsonl:{path}.gz')]
  assert [describe(pair) for pair in found] == whole
  expected = [json.loads(line) for line in lines if line[:1] == b'{' and line[-1:] == b'}' and b'\xff' not in line]
  assert [record for record, _ in found if isinstance(record, dict)] == expected
  for _, name in found:
    offset = int(name.rpartition('@')[2])
    assert offset == 0 or content[offset - 1:offset] == b'\n'


def describe(pair):
  return f'{pair[0]!s} {pair[1]}'


@pytest.mark.parametrize('ending', list(PACK))
@pytest.mark.parametrize('line, message', [
    (b'{"text": "a"', "is not JSON: Expecting ',' delimiter at character 13. Each line must be"),
    (b'[' * 100_000, 'is not JSON: maximum recursion depth exceeded'),
    (b'["text"]', 'is list, not an object with named fields: write {"text": "..."}.'),
    (b'{"text": "\xff"}', 'is not UTF-8: it has byte 0xFF after 10 bytes; if it is text'),
])
def test_damaged_lines_come_as_errors_and_the_rest_is_read(tmp_path, monkeypatch, line, message, ending):
  monkeypatch.setattr(files, 'RANGE', 20)  # so that the range of the line starts after other lines
  path = tmp_path / f'a.jsonl{ending}'
  path.write_bytes(PACK[ending](b'{"text": "one"}\n\n{"text": "two"}\n' + line + b'\n{"text": "three"}\n'))
  found = records(f'jsonl:{path}')
  assert texts(found[:2] + found[3:]) == ['one', 'two', 'three']
  error, name = found[2]
  assert isinstance(error, DataError) and name == f'{path}@33'
  assert str(error).startswith(f'{path} line 4, which starts at byte 33 of the text, {message}')


def test_lines_without_the_field_are_named(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "ok"}\n{"body": "a", "n": 1}')
  [_, (record, name)] = records(f'jsonl:{tmp_path}/a.jsonl')
  with pytest.raises(DataError, match="a.jsonl@15 has no text in data.field='text'; it has the fields body, n"):
    templates.texts(base().data, record, name)


def test_items_of_a_large_file_take_no_reading(tmp_path, monkeypatch):
  path = tmp_path / 'large.jsonl'
  with open(path, 'wb') as f:
    f.write(b'x' * (1 << 17))
    f.seek(100 << 30)  # a hole: takes no room
    f.write(b'\n{"text": "far"}\n')
  start = time.monotonic()
  source = open_source(f'jsonl:{path}')
  assert source.num_items == 1601 and source.num_bytes == (100 << 30) + 17
  [(record, name)] = source.documents(1600, 1601)
  assert record == dict(text='far') and name == f'{path}@{(100 << 30) + 1}'
  with open(path, 'ab') as f:
    f.write(b'[]')
  [_, (error, name)] = open_source(f'jsonl:{path}').documents(1600, 1601)
  # Lines so far into a file are not counted.
  assert str(error).startswith(f'{path} at byte {(100 << 30) + 17} of the text, is list') and '@' in name
  assert time.monotonic() - start < 5
  monkeypatch.setattr(files, 'LINE', 1000)
  source = open_source(f'jsonl:{path}')
  with pytest.raises(DataError, match='large.jsonl cannot be read beyond byte 0: a line of more than 1,000 bytes '):
    list(source.documents(0, 1))


# --- Parquet ------------------------------------------------------------------------------------


def write_parquet(path, rows, **keys):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **keys)


def test_parquet_is_cut_by_row_groups(tmp_path):
  rows = [dict(text=f'row {i} é', url='u', other=b'\xff') for i in range(2500)]
  write_parquet(tmp_path / 'train-00000-of-00002.parquet', rows[:1500], row_group_size=400)
  write_parquet(tmp_path / 'train-00001-of-00002.parquet', rows[1500:])
  source = open_source(f'parquet:{tmp_path}/train-*.parquet')
  assert source.num_items == 5
  found = list(source.documents())
  assert [record for record, _ in found] == [dict(text=row['text']) for row in rows]  # only what is asked for
  assert found == [pair for i in range(5) for pair in source.documents(i, i + 1)]
  assert found[401][1] == f'{tmp_path}/train-00000-of-00002.parquet#401'
  assert len({name for _, name in found}) == 2500
  assert 0.5 < source.num_bytes / sum(len(row['text'].encode()) for row in rows) < 3
  json.dumps(source.fingerprint)


def test_parquet_values_are_plain(tmp_path):
  row = dict(answers=dict(text=['a', 'b'], start=[1, 2]), raw=b'\xc3\xa9', n=1.5, none=None,
             day=datetime.date(2024, 2, 29), price=decimal.Decimal('1.50'))
  write_parquet(tmp_path / 'a.parquet', [row])
  source = open_source(f'parquet:{tmp_path}/a.parquet', inputs='{answers[text][1]} {raw} {day}', targets='{n}{price}')
  [(record, _)] = source.documents()
  assert record == dict(answers=row['answers'], raw='é', n=1.5, day='2024-02-29', price='1.50')


def test_parquet_values_that_are_no_text_are_damaged_records(tmp_path):
  values = pyarrow.array([b'fine', b'bad \xff', b'also fine'])
  for kind in (pyarrow.binary(), pyarrow.string()):
    array = pyarrow.Array.from_buffers(kind, 3, values.buffers())
    pyarrow.parquet.write_table(pyarrow.table(dict(text=array)), tmp_path / 'a.parquet')
    found = records(f'parquet:{tmp_path}/a.parquet')
    assert texts(found[::2]) == ['fine', 'also fine']
    error, name = found[1]
    assert isinstance(error, DataError) and name == f'{tmp_path}/a.parquet#1'
    assert str(error).startswith(f'{tmp_path}/a.parquet row 1, in row group 0, ')


def test_damaged_parquet_files_and_unknown_columns(tmp_path):
  path = tmp_path / 'a.parquet'
  write_parquet(path, [dict(text=base64.b64encode(os.urandom(90)).decode(), url='u') for _ in range(3000)],
                row_group_size=1000, use_dictionary=False, write_page_checksum=True)
  with pytest.raises(DataError, match=r"data.field='txt' is not a column of .*a.parquet \(did you mean 'text'\?\), "
                     'which has text, url'):
    open_source(f'parquet:{path}', field='txt')
  with pytest.raises(DataError, match="The field 'body' of the templates is not a column"):
    open_source(f'parquet:{path}', inputs='{text}', targets='{body}')
  content = path.read_bytes()
  path.write_bytes(content[:-100])
  with pytest.raises(DataError, match='a.parquet cannot be read as a parquet file: .*; copy or make that file again'):
    open_source(f'parquet:{path}')
  path.write_bytes(content[:150_000] + bytes(9000) + content[159_000:])
  source = open_source(f'parquet:{path}')
  assert len(list(source.documents(0, 1))) == len(list(source.documents(2, 3))) == 1000
  with pytest.raises(DataError, match='a.parquet cannot be read beyond row 1000, in row group 1: .*again'):
    list(source.documents(1, 2))


# --- Far away -----------------------------------------------------------------------------------


def test_remote_files_are_read_like_local_ones(memory, tmp_path, monkeypatch):
  content = b'{"text": "one"}\r\n{"text": "tw\xc3\xb6"}\n{\n{"text": "four"}'
  for ending, pack in PACK.items():
    memory(f'deep/at{ending}/a.jsonl{ending}', pack(content))
    (tmp_path / f'a.jsonl{ending}').write_bytes(pack(content))
  monkeypatch.setattr(files, 'RANGE', 20)
  for ending in PACK:
    source = open_source(f'jsonl:memory://t5like/**/a.jsonl{ending}')
    found = list(source.documents())
    local = [describe(pair).replace(str(tmp_path), '') for pair in records(f'jsonl:{tmp_path}/a.jsonl{ending}')]
    assert [describe(pair).replace(f'memory:///t5like/deep/at{ending}', '') for pair in found] == local
    assert texts(found[:2] + found[3:]) == ['one', 'twö', 'four'] and 'line 3, which' in str(found[2][0])
    json.dumps(source.fingerprint)
  url = memory('b.txt', b'text')
  assert records(f'text:{url}') == [(dict(text='text'), 'memory:///t5like/b.txt')]
  write_parquet(tmp_path / 'a.parquet', [dict(text='row')])
  assert texts(records('parquet:' + memory('a.parquet', (tmp_path / 'a.parquet').read_bytes()))) == ['row']


def test_a_changed_remote_file_has_another_fingerprint(memory):
  before = open_source('text:' + memory('a.txt', b'text')).fingerprint
  assert open_source('text:memory://t5like/a.txt').fingerprint == before
  time.sleep(0.01)
  assert open_source('text:' + memory('a.txt', b'tixt')).fingerprint != before
  assert files._stamp(dict(name='x', size=3, etag='e', mtime='m')) == 'e'
  assert files._stamp(dict(ETag='"abc"', LastModified='2024')) == '"abc"'


def test_remote_files_that_are_missing_or_damaged(memory):
  memory('corpus.jsonl', b'')
  with pytest.raises(DataError, match=r"data.source='jsonl:memory.*no file matches memory.*holds corpus.jsonl"):
    records('jsonl:memory://t5like/corpsu.jsonl')
  with pytest.raises(DataError, match='memory://t5like holds corpus.jsonl|memory:///t5like holds corpus.jsonl'):
    records('jsonl:memory://t5like/no/*/x.jsonl')
  source = open_source('text:' + memory('a.txt', b'text'))
  fsspec.filesystem('memory').rm('/t5like/a.txt')
  with pytest.raises(DataError, match='memory:///t5like/a.txt cannot be read beyond byte 0 of its text: .*put it back'):
    list(source.documents())
  with pytest.raises(DataError, match='memory:///t5like/a.txt.gz cannot be read beyond byte 4 of its text: .*ended'):
    records('text:' + memory('a.txt.gz', gzip.compress(b'text')[:-4]))


class Hangs(fsspec.AbstractFileSystem):
  protocol = 'hangs'
  cachable = False
  released = threading.Event()

  def ls(self, path, detail=True, **keys):
    if 'forbidden' in path:
      raise PermissionError('anonymous caller does not have storage.objects.list access')
    self.released.wait(60)
    return []


def test_a_store_that_hangs_or_refuses_is_an_error_in_time(monkeypatch):
  fsspec.register_implementation('hangs', Hangs, clobber=True)
  monkeypatch.setitem(mirror.ADVICE, 'hangs', 'gcloud auth application-default login')
  monkeypatch.setattr(mirror, 'LIMIT', 0.3)
  start = time.monotonic()
  with pytest.raises(DataError, match=r"data.source='jsonl:hangs://b/\*.jsonl': hangs://b/\*.jsonl did not answer "
                     'within 0.3 s. Check the path, the network, .*: gcloud auth application-default login'):
    records('jsonl:hangs://b/*.jsonl')
  assert time.monotonic() - start < 5
  Hangs.released.set()
  with pytest.raises(DataError, match=r'looking at hangs://forbidden/\*.txt failed \(PermissionError: anonymous'):
    records('text:hangs://forbidden/*.txt')


@pytest.mark.parametrize('url, package, fix', [('gs://b/x.txt', 'gcsfs', "pip install 't5like[gcs]'"),
                                               ('s3://b/x.txt', 's3fs', "pip install 't5like[s3]'")])
def test_packages_for_remote_files_are_named(monkeypatch, url, package, fix):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(DataError) as error:
    records(f'text:{url}')
  assert f"data.source='text:{url}'" in str(error.value) and fix in str(error.value)


def test_a_folder_in_place_of_a_glob_is_told(tmp_path):
  (tmp_path / 'a.txt').write_text('words')
  for pattern in (tmp_path, f'{tmp_path}/', '/'):
    with pytest.raises(DataError, match=r'is a folder: write .*/\* for its files'):
      records(f'text:{pattern}')
