"""JSON of others: whatever it is, it is read as Python's own reader has it, or refused in one sentence."""
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings, strategies as st

from t5like.errors import DataError
from t5like.files import schema
from t5like.files.schema import (
  Anything,
  Either,
  FileName,
  Flag,
  Invalid,
  Limits,
  List,
  Maybe,
  Object,
  OneOf,
  Real,
  Text,
  Whole,
)
from tests.conftest import ROOT

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2 ** 63 + 1, 2 ** 63 - 1) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20)
TOKENS = '[]{}",:0123456789eE+-.\\utrefalsnNI dD8'


@settings(max_examples=300, deadline=None, derandomize=True)
@given(VALUES, st.booleans())
def test_what_is_json_is_read_as_python_reads_it(value, ascii_only):
  text = json.dumps(value, ensure_ascii=ascii_only).encode()
  assert schema.parse(text) == value
  assert schema.parse(b'\xef\xbb\xbf' + text) == value


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.binary(max_size=60) | st.text(alphabet=TOKENS, max_size=40).map(str.encode))
def test_other_bytes_are_refused_with_a_sentence(content):
  try:
    value = schema.parse(content)
  except Invalid as error:
    assert 10 < len(str(error)) < 300 and '\n' not in str(error)
  else:
    assert json.dumps(value, allow_nan=False)
    assert value == json.loads(content, parse_int=lambda text: int(text) if abs(int(text)) < 2 ** 63 else float(text))


def nested(depth, kind):
  opens, closes = {'list': ('[', ']'), 'object': ('{"a":', '}')}[kind]
  return opens * depth + '0' + closes * depth


@pytest.mark.parametrize('kind', ['list', 'object'])
def test_levels_are_counted(kind):
  assert schema.parse(nested(64, kind)) is not None
  for depth in (65, 500, 900, 100_000):
    with pytest.raises(Invalid, match='nested more than 64 levels deep'):
      schema.parse(nested(depth, kind))
  assert schema.parse('[' + ','.join(['[]'] * 1000) + ']') == [[]] * 1000  # many, but not deep


@pytest.mark.parametrize('text, problem', [
    (b'', 'is not JSON'), (b'{', 'is not JSON: Expecting property name .* at line 1'), (b'[1] 2', 'Extra data'),
    (b'\xff\xfe{\x00}\x00', 'is not UTF-8: byte 0xFF at offset 0'), (b'"\xed\xa0\x80"', 'is not UTF-8'),
    (rb'["\ud83d"]', 'half of a surrogate pair'), (rb'{"a": {"\udc00": 1}}', 'half of a surrogate pair'),
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', 'has the key "c" twice'),
    (b'NaN', 'has the number NaN'), (b'[-Infinity]', 'has the number -Infinity'), (b'1e999', 'too large'),
    (b'9' * 5000, 'has a number of 5,000 digits'), (b'-' + b'9' * 390, 'too large'),
    (b'[' + b'0,' * 1_000_001 + b'0]', 'holds more than 1,000,000 values'), (b' ' * (17 << 20), 'has more than'),
])
def test_limits(text, problem):
  with pytest.raises(Invalid, match=problem):
    schema.parse(text)


def test_what_is_let_through():
  assert schema.parse(rb'["\ud83d\ude00"]') == ['\U0001f600']
  assert schema.parse(b'{"model_max_length": 1000000000000000019884624838656}') == {'model_max_length': 1e30}
  assert schema.parse(b'[NaN, 1]', limits=Limits(constants=True)) == [None, 1]
  assert schema.parse(b'{"a": 1, "a": 2}', limits=Limits(unique=False)) == {'a': 2}


@pytest.mark.parametrize('shape, good, bad, problem', [
    (Whole(1, 5), [1, 5], [0, 6, True, 1.0, '1', None, [1], 1e30], r'a=.* must be a whole number from 1 to 5'),
    (Whole(0, 10 ** 6), [10 ** 6], [-1], 'from 0 to 1,000,000'),
    (Real(0, 1, below=True), [0, 0.5], [1, -0.1, 'x', False, None], 'a finite number at least 0 and below 1'),
    (Real(0, above=True), [1e-9, 3], [0, None], 'must be a finite number above 0'),
    (Real(), [-1e300, 0], ['', {}], 'must be a finite number'),
    (Text(3), ['', 'abc'], ['abcd', 1, None], 'a text of at most 3 characters'),
    (Flag(), [True, False], [0, 1, 'true', None], 'true or false'),
    (OneOf(('x', 'y')), ['x'], ['z', 1, ['x'], None], r'one of "x", "y"'),
    (FileName('.bin'), ['a.bin', '..a.bin', '.bin'], ['a', '../a.bin', '/a.bin', 'b/a.bin', 'b\\a.bin', 'a\0.bin', 1,
                                                      'a' * 255 + '.bin'], 'without / and ..'),
    (FileName(), ['a', '...'], ['', '.', '..'], 'without / and ..'),
    (Maybe(Whole(0, 1)), [None, 1], [2, 'x'], 'from 0 to 1, or null'),
    (Either((Whole(0, 1), List(Whole(0, 1)))), [1, [0, 1]], [2, [2], 'x', ['x']], 'a whole number from 0 to 1'),
    (List(Text(), 1, 2), [['a'], ['a', 'b']], [[], ['a'] * 3, 'a', {'a': 1}], 'a list of 1 to 2 values'),
    (List(Text()), [[]], [['a', 1]], r'a\[1\]=1 must be a text'),
    (Object(dict(b=Whole()), ('b',)), [{'b': 1}, {'b': 1, 'c': None}], [{'b': 'x'}], r'a\.b="x" must be a whole'),
    (Object(dict(b=Whole()), ('b',)), [], [{}, {'c': 1}], 'a lacks b'),
    (Object(dict(bee=Whole()), rest=None), [{}], [{'bea': 1}], r'a\.bea is an unknown key \(did you mean .bee.'),
    (Object(rest=Whole()), [{'x': 1}], [{'x': 'y'}], r'a\.x="y" must be'),
    (Object(), [{}], [[], 'x', 1, None], 'an object with named values'),
])
def test_shapes(shape, good, bad, problem):
  whole = Object(dict(a=shape))
  for value in good:
    assert schema.parse(json.dumps(dict(a=value)), whole) == dict(a=value)
  for value in bad:
    with pytest.raises(Invalid, match=problem):
      schema.parse(json.dumps(dict(a=value)), whole)


def test_values_are_shortened():
  for value in ('x' * 10 ** 6, ['x' * 1000] * 50, {str(i): i for i in range(1000)}, 'a\nb'):
    with pytest.raises(Invalid) as e:
      schema.parse(json.dumps(dict(a=value)), Object(dict(a=Whole())))
    assert len(str(e.value)) < 200 and '\n' not in str(e.value)


def test_files(tmp_path):
  path = tmp_path / 'x.json'
  with pytest.raises(FileNotFoundError):
    schema.read(path, Anything(), DataError)
  path.write_text('{"a": 1}')
  assert schema.read(path, Object(), DataError) == schema.read(str(path), Object(), DataError) == {'a': 1}
  path.write_text('{"a": 1')
  with pytest.raises(DataError, match=r'x.json is not JSON: .* at line 1, character 8\. Do this\.'):
    schema.read(path, Object(), DataError, 'Do this.')
  path.write_text('{"a": 1}')
  with pytest.raises(DataError, match=r'x.json: a=1 must be true or false\.$'):
    schema.read(path, Object(dict(a=Flag())), DataError)
  with pytest.raises(DataError, match='has more than 5 bytes'):
    schema.read(path, Object(), DataError, limits=Limits(size=5))
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  for odd, problem in [(tmp_path, 'is a folder'), (tmp_path / 'pipe', 'is not a regular file'),
                       ('/dev/zero', 'is not a regular file'), (tmp_path / 'loop', 'cannot be read'),
                       (tmp_path / ('x' * 5000), 'cannot be read'), (path / 'y', 'cannot be read'),
                       (f'{tmp_path}/\0', 'is no path')]:
    with pytest.raises(DataError, match=problem) as e:
      schema.read(odd, Anything(), DataError)
    assert len(str(e.value)) < 500


def test_lines_that_are_whole(tmp_path):
  path = tmp_path / 'x.jsonl'
  assert list(schema.lines(path, Object())) == []
  kept = [dict(step=1, text='a\u2028b\x85c'), dict(step=2, nll=None)]
  path.write_text('null\n3\n\n{"step": 1, "text": "a\u2028b\x85c"}\n[]\n{"step": "x"}\n{"step": 2, "nll": NaN}\n'
                  + nested(10 ** 5, 'list') + '\n{"step": 3, "tex', encoding='utf-8')
  assert list(schema.lines(path, Object(dict(step=Whole()), ('step',)))) == kept
  assert list(schema.lines(path, Object(dict(step=Whole()), ('step',)), Limits(size=60, constants=True))) == kept
  with pytest.raises(DataError, match='prompts: line 3 is not JSON'):
    schema.records(b'{"a": 1}\n\n{', Object(), 'prompts', DataError)
  assert schema.records('{"a": "\u2028"}\r\n{}'.encode(), Object(), 'prompts', DataError) == [{'a': '\u2028'}, {}]


@pytest.mark.parametrize('piece', ['{}', '[]', '{"":0}', '0', '"a"', '1.5', 'null', '""'])
def test_the_largest_text_takes_little_memory(piece):
  """Measured in a process of its own: values are counted before Python makes objects of them."""
  script = f"""if True:
    import resource, time
    from t5like.files import schema
    text = ('[' + {piece + ','!r} * {999_998 // (1 + piece.count('{') + piece.count('['))} + '0]').encode()
    before, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    schema.parse(text)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.monotonic() - since)"""
  kilobytes, seconds = map(float, subprocess.check_output([sys.executable, '-c', script], cwd=ROOT, text=True).split())
  assert kilobytes < 300_000 and seconds < 5
