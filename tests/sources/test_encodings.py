"""What files hold: text whatever its byte-order mark and compression; the rest is refused with the true reason."""
import bz2
import codecs
import gzip
import io
import json
import lzma
import sqlite3
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings, strategies as st

from t5like.config import base
from t5like.errors import DataError
from t5like.sources import encodings, registry

TEXT = 'Straße\n中文 and plain words\n'
PACK = {'': bytes, '.gz': gzip.compress, '.zst': zstandard.compress, '.bz2': bz2.compress, '.xz': lzma.compress,
        '.BZ2': bz2.compress}
MARKED = {'utf-8': codecs.BOM_UTF8, 'utf-16-le': codecs.BOM_UTF16_LE, 'utf-16-be': codecs.BOM_UTF16_BE,
          'utf-32-le': codecs.BOM_UTF32_LE, 'utf-32-be': codecs.BOM_UTF32_BE}


def records(source, **keys):
  c = base()
  c.data.update(source=source, **keys)
  return list(registry.open_source(c).documents())


def said(source, **keys):
  """What is said of a source whose only file is refused, as an error or in place of its record."""
  try:
    [(error, _)] = records(source, **keys)
  except DataError as e:
    return str(e)
  assert isinstance(error, DataError), error
  return str(error)


@pytest.mark.parametrize('ending', PACK)
def test_bz2_and_xz_are_read_as_gz_and_zst_are(tmp_path, ending):
  path = tmp_path / f'a.txt{ending}'
  path.write_bytes(PACK[ending](TEXT.encode()))
  assert records(f'text:{path}') == [(dict(text=TEXT), str(path))]
  lines = tmp_path / f'a.jsonl{ending}'
  lines.write_bytes(PACK[ending](b''.join(json.dumps(dict(text=f'{i}')).encode() + b'\n' for i in range(5000))))
  assert [record['text'] for record, _ in records(f'jsonl:{lines}')] == [str(i) for i in range(5000)]


@pytest.mark.parametrize('ending', ['.gz', '.zst', '.bz2', '.xz'])
def test_files_of_several_streams_and_files_that_end_early(tmp_path, ending):
  path = tmp_path / f'a.txt{ending}'
  whole = PACK[ending](TEXT.encode() * 500)
  path.write_bytes(PACK[ending](b'first ') + PACK[ending](b'second'))
  assert records(f'text:{path}')[0][0] == dict(text='first second')
  path.write_bytes(whole[:-20])
  with pytest.raises(DataError, match=rf'a\.txt{ending} cannot be read beyond byte'):
    records(f'text:{path}')
  path.write_bytes(b'not compressed at all')
  with pytest.raises(DataError, match=rf'a\.txt{ending} cannot be read beyond byte 0'):
    records(f'text:{path}')


@pytest.mark.parametrize('encoding', MARKED)
@pytest.mark.parametrize('ending', ['', '.gz'])
def test_byte_order_marks_are_honoured_and_taken_away(tmp_path, encoding, ending):
  path = tmp_path / f'a.txt{ending}'
  path.write_bytes(PACK[ending](MARKED[encoding] + TEXT.encode(encoding)))
  assert records(f'text:{path}') == [(dict(text=TEXT), str(path))]
  path = tmp_path / f'a.jsonl{ending}'
  path.write_bytes(PACK[ending](MARKED[encoding] + '{"text": "ö"}\n'.encode(encoding)))
  if encoding == 'utf-8':
    assert records(f'jsonl:{path}')[0][0] == dict(text='ö')
  else:
    assert f'is in {encoding.upper()}' in said(f'jsonl:{path}') and 'iconv -f UTF-' in said(f'jsonl:{path}')


@pytest.mark.parametrize('encoding', ['utf-16-le', 'utf-16-be'])
def test_utf16_without_a_mark_is_refused_though_it_is_valid_utf8(tmp_path, encoding):
  (tmp_path / 'a.txt').write_bytes('plain words'.encode(encoding))
  (tmp_path / 'a.jsonl').write_bytes('{"text": "plain words"}\n'.encode(encoding))
  for source in (f'text:{tmp_path}/a.txt', f'jsonl:{tmp_path}/a.jsonl'):
    assert f'iconv -f UTF-16{encoding[-2:].upper()} -t UTF-8' in said(source)


def test_other_encodings_get_no_advice_that_spoils_them(tmp_path):
  for encoding in ('latin1', 'shift_jis', 'koi8-r'):
    word = {'latin1': 'Straße', 'shift_jis': '日本語', 'koi8-r': 'слово'}[encoding]
    (tmp_path / 'a.txt').write_bytes(word.encode(encoding))
    (tmp_path / 'a.jsonl').write_bytes(f'{{"text": "{word}"}}'.encode(encoding))
    for source in (f'text:{tmp_path}/a.txt', f'jsonl:{tmp_path}/a.jsonl'):
      assert 'is not UTF-8' in said(source) and 'file -i' in said(source) and 'latin1' not in said(source)


def zipped():
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as z:
    z.writestr('word/document.xml', '<w>text</w>')
  return out.getvalue()


def tarred():
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w') as t:
    entry = tarfile.TarInfo('a.txt')
    entry.size = 5
    t.addfile(entry, io.BytesIO(b'words'))
  return out.getvalue()


def parquet():
  out = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.table(dict(text=['a'])), out)
  return out.getvalue()


def database(tmp_path):
  connection = sqlite3.connect(tmp_path / 'made')
  connection.execute('create table t (x)')
  connection.commit()
  connection.close()
  return (tmp_path / 'made').read_bytes()


KINDS = {
    'a.zip': (zipped, 'archive'), 'a.docx': (zipped, 'office document'), 'a.odt': (zipped, 'office document'),
    'a.epub': (zipped, 'document'), 'a.pdf': (lambda: b'%PDF-1.7\nplain', 'document'),
    'a.tar': (tarred, 'archive'), 'a.tar.gz': (lambda: gzip.compress(tarred()), 'archive'),
    'a.parquet': (parquet, 'parquet:GLOB'), 'a.png': (lambda: b'\x89PNG\r\n\x1a\n' + bytes(20), 'picture'),
    'a.7z': (lambda: b'7z\xbc\xaf\x27\x1c' + bytes(20), 'archive'),
    'a.tgz': (lambda: gzip.compress(tarred()), 'archive'), 'a.lz4': (lambda: b'\x04\x22\x4d\x18abc', '.zst'),
}


@pytest.mark.parametrize('kind', ['text', 'jsonl'])
@pytest.mark.parametrize('name', KINDS)
def test_what_is_no_text_is_refused_by_its_name_before_it_is_read(tmp_path, name, kind):
  make, word = KINDS[name]
  (tmp_path / name).write_bytes(make())
  with pytest.raises(DataError) as e:
    c = base()
    c.data.update(source=f'{kind}:{tmp_path}/{name}')
    registry.open_source(c)
  assert name in str(e.value) and word in str(e.value) and 'iconv' not in str(e.value)


@pytest.mark.parametrize('kind', ['text', 'jsonl'])
@pytest.mark.parametrize('make, word', [
    *((make, '') for make, _ in KINDS.values()), (lambda: gzip.compress(b'words'), '.gz'),
    (lambda: bz2.compress(b'words'), '.bz2'), (lambda: lzma.compress(b'words'), '.xz'),
    (lambda: zstandard.compress(b'words'), '.zst'), (lambda: gzip.compress(tarred()), '.gz'),
    (lambda: bytes(100), 'zero'), (lambda: b'text and ' + bytes(40), 'zero'),
    (lambda: b'{\\rtf1\\ansi Hello}', 'RTF'), (lambda: b'\x7fELF' + bytes(30), 'program'),
    (lambda: b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', 'git lfs pull')])
def test_what_is_no_text_is_refused_by_its_first_bytes(tmp_path, kind, make, word):
  path = tmp_path / 'a.txt'
  path.write_bytes(make())
  message = said(f'{kind}:{path}')
  assert 'a.txt' in message and word in message and 'iconv' not in message and 'not text' in message


def test_a_database_and_a_packed_archive_are_refused(tmp_path):
  (tmp_path / 'a.txt').write_bytes(database(tmp_path))
  assert 'SQLite' in said(f'text:{tmp_path}/a.txt')
  (tmp_path / 'b.txt.gz').write_bytes(gzip.compress(tarred()))
  assert 'tar archive' in said(f'text:{tmp_path}/b.txt.gz')


@pytest.mark.parametrize('name', ['a.txt.gz', 'a.jsonl.zst', 'a.jsonl.xz', 'a.parquet'])
def test_pointers_of_git_lfs_are_said_to_be_that(tmp_path, name):
  (tmp_path / name).write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n')
  kind = name.split('.')[1].replace('txt', 'text')
  assert 'git lfs pull' in said(f'{kind}:{tmp_path}/{name}')


def test_what_is_packed_twice_is_not_to_be_renamed(tmp_path):
  (tmp_path / 'a.txt.gz').write_bytes(gzip.compress(gzip.compress(b'words')))
  assert 'packed twice' in said(f'text:{tmp_path}/a.txt.gz')


@pytest.mark.parametrize('encoding', ['iso2022_jp', 'iso2022_jp_1', 'iso2022_kr'])
def test_encodings_of_seven_bits_are_refused_though_they_are_valid_utf8(tmp_path, encoding):
  text = '\ud55c\uad6d\uc5b4' if encoding == 'iso2022_kr' else '\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8'
  content = f'{{"text": "plain, then {text}"}}\n'.encode(encoding)
  content.decode('utf-8')
  for name, kind in (('a.txt', 'text'), ('a.jsonl', 'jsonl')):
    (tmp_path / name).write_bytes(content)
    assert 'ISO-2022' in said(f'{kind}:{tmp_path}/{name}') and 'iconv -f ENCODING' in said(f'{kind}:{tmp_path}/{name}')


def test_within_max_bad_records_what_is_no_text_is_a_damaged_record(tmp_path):
  (tmp_path / 'a.txt').write_text('words')
  (tmp_path / 'b.pdf').write_bytes(b'%PDF-1.7')
  with pytest.raises(DataError, match='b.pdf is a document'):
    records(f'text:{tmp_path}/*')
  (record, _), (error, name) = records(f'text:{tmp_path}/*', max_bad_records=1)
  assert record == dict(text='words') and isinstance(error, DataError) and name.endswith('b.pdf')


def test_text_that_begins_like_something_else_is_text(tmp_path):
  for text in ('PAR1 is a word', 'BZh1 too', 'GIF89a, a format', 'Rar!', 'a\0b ' * 1 + 'c' * 200, 'PKZIP', 'ID3 tags'):
    (tmp_path / 'a.txt').write_text(text)
    assert records(f'text:{tmp_path}/a.txt')[0][0] == dict(text=text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters='\0', exclude_categories=['Cs'])), st.sampled_from(['', *MARKED]))
def test_any_text_comes_back_as_it_was(text, encoding):
  content = text.encode(encoding) if encoding else text.removeprefix('\ufeff').encode()
  text = text if encoding else text.removeprefix('\ufeff')
  if not encoding and content.startswith(encodings.PRINTABLE):
    return
  assert encodings.decode(MARKED[encoding] + content if encoding else content, 'x') == (
      text if encoding or not text.startswith('\ufeff') else text[1:])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_refused(content):
  try:
    text = encodings.decode(content, 'x')
  except DataError as error:
    assert str(error).startswith('x ') and len(str(error)) < 400
    return
  assert text.encode(encodings.mark_of(content)[1] or 'utf-8') == content[len(encodings.mark_of(content)[0]):]
