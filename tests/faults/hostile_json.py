"""JSON that nobody should take on trust, made from JSON that is right: `mutated(rng, content)`."""
import json

DEEP = 100_000  # levels
# What may stand in the place of any value.
VALUES = (
    None, True, False, 0, -1, 1, 3, 0.5, -0.0, 1e-300, 1e300, float('nan'), float('inf'), -float('inf'),
    10 ** 9, 10 ** 12, 10 ** 30, -10 ** 18, 2 ** 31, 2 ** 53 + 1, 2 ** 63 - 1, 2 ** 63, 2 ** 64,
    '', ' ', 'x', '0', '1e9', 'null', 'é☃\U0001f600', 'a\u2028b\x85c', '\ud800', 'x\udfffy', '\0', '\x1b[31m',
    '../../../etc/passwd', '/etc/passwd', '..', '.', '~', 'C:\\x', 'file:///etc/passwd', 'a' * 5000, 'a' * 10 ** 6,
    '{text}', '{0.__class__}', '%s%n', '__import__("os").system("x")',
    [], {}, [[]], [None], [1, 'a', {}], [0] * 1000, {'a': None}, {'__class__': 'x'})
WHOLE = (
    b'', b' ', b'null', b'3', b'true', b'"x"', b'[]', b'{}', b'[null]', b'NaN', b'{', b'}', b'\x00', b'\xff\xfe',
    b'\xef\xbb\xbf', b'{"a": 1}', b'{"a": 1, "a": 2}', b'1' * 10_000, b'1e999', b'"\\ud800"', b'"\\uZZZZ"',
    b'[' * DEEP, b'[' * DEEP + b']' * DEEP, b'{"a":' * DEEP + b'1' + b'}' * DEEP, b'[' + b'{},' * 10 ** 6 + b'{}]',
    b'\n' * 1000, b'cos\nsystem\n(S"echo"\ntR.', b'PK\x03\x04' + bytes(100), b'\x1f\x8b' + bytes(100),
    b'!!python/object:os.system x')


def mutated(rng, content):
  """(what was done, bytes): `content`, the bytes of a JSON text, with one thing wrong or odd about it."""
  how = rng.choice(['value', 'value', 'value', 'value', 'bytes', 'whole', 'structure', 'structure'])
  if how == 'whole':
    i = rng.randrange(len(WHOLE))
    return f'whole file {WHOLE[i][:20]!r}', WHOLE[i]
  if how == 'bytes':
    return _bytes(rng, content)
  try:
    tree = json.loads(content)
  except ValueError:
    return _bytes(rng, content)
  places = _places(tree)
  if not places:
    return _bytes(rng, content)
  parent, key = rng.choice(places)
  if how == 'value':
    value = _other(rng, parent[key])
    parent[key] = value
    return f'{key} = {repr(value)[:60]}', _text(tree)
  return _structure(rng, tree, parent, key, places)


def mutated_lines(rng, content):
  """As `mutated`, of one line of a text of JSON lines."""
  lines = content.split(b'\n')
  full = [i for i, line in enumerate(lines) if line.strip()]
  if not full or rng.random() < 0.1:
    return _bytes(rng, content)
  at = rng.choice(full)
  what, line = mutated(rng, lines[at])
  lines[at] = line if rng.random() < 0.9 else line + b'\n' + line
  return f'line {at + 1}: {what}', b'\n'.join(lines)


def _other(rng, value):
  """Something else than a value: of another kind, or the same a little beside or far away."""
  roll = rng.random()
  if isinstance(value, bool) or roll < 0.6:
    return rng.choice(VALUES)
  if isinstance(value, (int, float)):
    return rng.choice([-value, value + 1, value - 1, value * 10 ** 6, value * 10 ** 12, float(value), str(value),
                       [value], value / 7])
  if isinstance(value, str):
    return rng.choice([value + 'x', value[:-1], value.upper(), value * 1000, [value], {value: value}, f'../{value}',
                       f'/{value}', value + '\0', value.encode().hex()])
  if isinstance(value, list):
    return rng.choice([value + value, value[:-1], value[::-1], dict(enumerate(map(str, value))), [value],
                       value[:1] * 10_000])
  inner = value or {}
  return rng.choice([[value], list(inner), dict(inner, unknown=1), {}, {str(i): i for i in range(10_000)}])


def _structure(rng, tree, parent, key, places):
  how = rng.choice(['drop', 'rename', 'swap', 'twice', 'deep', 'unknown', 'copy'])
  if how == 'drop':
    del parent[key]
  elif how == 'rename' and isinstance(parent, dict):
    parent[rng.choice([key.upper(), key + ' ', '', 'x' * 5000, '\ud800', '__proto__'])] = parent.pop(key)
  elif how == 'swap':
    other, at = rng.choice(places)
    if other is not parent[key] and parent is not other[at]:
      a, b = parent[key], other[at]
      parent[key] = b
      other[at] = a
    if _holds_itself(tree):
      return 'null at the top', b'null'
  elif how == 'twice' and isinstance(parent, dict):
    text = json.dumps(key) + ': ' + json.dumps(parent[key])
    return f'{key} twice', _text(tree).replace(text.encode(), f'{text}, {json.dumps(key)}: null'.encode(), 1)
  elif how == 'deep':
    parent[key] = '@DEEP@'
    levels = rng.choice([70, 900, DEEP])
    deep = b'[' * levels + b']' * levels if rng.random() < 0.5 else b'{"a":' * levels + b'0' + b'}' * levels
    return f'{key} is {levels} levels deep', _text(tree).replace(b'"@DEEP@"', deep)
  elif how == 'unknown' and isinstance(parent, dict):
    parent[rng.choice(['unknown', '', '$ref', key + '2'])] = rng.choice(VALUES)
  else:
    how = 'copy'
    parent[key] = json.loads(json.dumps(tree)) if len(json.dumps(tree)) < 10 ** 5 else tree.__class__()
  return f'{how} {str(key)[:60]}', _text(tree)


def _bytes(rng, content):
  content, n = bytearray(content), len(content)
  how = rng.choice(['cut', 'flip', 'insert', 'noise', 'bom', 'utf-16', 'latin-1', 'append', 'zeros', 'comma', 'quote'])
  at = rng.randrange(n) if n else 0
  if how == 'cut':
    del content[at:]
  elif how == 'flip' and n:
    content[at] ^= 1 << rng.randrange(8)
  elif how == 'noise':
    content[at:at + 8] = rng.randbytes(8)
  elif how == 'bom':
    content = b'\xef\xbb\xbf' + content
  elif how == 'utf-16':
    content = content.decode(errors='replace').encode('utf-16')
  elif how == 'latin-1':
    content[at:at] = 'é'.encode('latin-1')
  elif how == 'append':
    content += rng.choice([b'x', b'\0' * 100, b'}', b'{}', b'[' * 1000])
  elif how == 'zeros':
    content[at:] = bytes(n - at)
  else:
    content[at:at] = rng.choice([b',', b'"', b'\\', b'{', b'\x00', b'\\ud800', b'1e999', b'NaN'])
  return f'{how} at byte {at}', bytes(content)


def _places(tree):
  """[(list or dict, key)] of every value inside a tree."""
  found, waiting = [], [tree]
  while waiting:
    node = waiting.pop()
    if isinstance(node, (dict, list)):
      inner = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
      found += [(node, key) for key, _ in inner[:200]]
      waiting += [value for _, value in inner[:200]]
  return found


def _holds_itself(tree):
  try:
    json.dumps(tree)
  except (ValueError, RecursionError):
    return True
  return False


def _text(tree):
  return json.dumps(tree, ensure_ascii=True).encode()
