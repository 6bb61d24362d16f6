"""Configs: read a file, apply `--config.key=value`, check every value, compare two configs.

    config = load('configs/decoder_tiny.py:smoke', ['optimizer.learning_rate=1e-3'])

`configs/base.py` says what keys mean; this file says which values they take. Nothing here imports
JAX, so that a wrong config fails in well under a second, with all its problems in one message.
"""
import ast
import difflib
import fractions
import inspect
import json
import math
import pathlib
import re
import sys
import traceback

import ml_collections

from t5like.errors import ConfigError

ROOT = pathlib.Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # configs import `configs.base`, from whatever directory one works in
  sys.path.insert(0, str(ROOT))
from configs.base import base  # noqa: E402

# Prefixes of keys that may differ from the run being resumed: they change neither what the
# parameters are nor which rows of text come next, or are meant to be turned while training.
ALLOWED = tuple('''batch_size microbatches optimizer.learning_rate schedule stop evaluate checkpoint
  log guard watchdog sample mesh reference params_expected allow_changed data.workers data.prefetch
  data.directory data.tfds_dir model.remat model.scan_layers model.attention loss.chunks'''.split())

CHOICES = {key: tuple(values.split()) for key, values in {
    'vocabulary.name': 'sentencepiece bytes characters',
    'vocabulary.algorithm': 'unigram bpe',
    'vocabulary.normalization': 'nmt_nfkc identity',
    'objective.name': 'causal',
    'model.name': 'decoder',
    'model.activation': 'swiglu geglu gelu gelu_tanh relu',
    'model.norm': 'rmsnorm layernorm',
    'model.position': 'rope learned none',
    'model.init': 'fan_in gpt2',
    'model.dtype': 'bfloat16 float32',
    'model.param_dtype': 'float32',
    'model.attention': 'auto xla',
    'model.remat': 'none minimal full',
    'schedule.name': 'cosine linear rsqrt wsd constant',
}.items()}

RANGES = {key: interval for interval, keys in {
    '[1, inf)': '''batch_size microbatches data.seq_len vocabulary.size vocabulary.train_characters
      model.d_model model.num_layers model.num_heads model.max_positions schedule.timescale
      log.every checkpoint.keep guard.max_bad_steps sample.tokens''',
    '[0, inf)': '''params_expected data.max_documents data.shards data.workers data.prefetch
      vocabulary.sentinels model.vocab_size model.num_kv_heads model.head_dim model.d_ff
      model.logit_softcap loss.z_loss loss.chunks optimizer.eps optimizer.weight_decay
      optimizer.clip_norm schedule.warmup_steps stop.patience stop.wall_time evaluate.every
      evaluate.batches checkpoint.every checkpoint.keep_every sample.temperature sample.top_k''',
    '(0, inf)': '''optimizer.learning_rate model.norm_eps model.rope_theta watchdog.start
      watchdog.step''',
    '[0, 1)': 'model.dropout loss.label_smoothing optimizer.b1 optimizer.b2',
    '[0, 1]': 'schedule.final_scale schedule.decay_fraction',
    '(0, 1]': 'sample.top_p',
    '[0, 4294967296)': 'seed',
}.items() for key in keys.split()}

# What follows the kind in data.source: nothing, any text, or a number of letters of the alphabet.
SOURCES = {'python_docs': '', 'shakespeare': '', 'text': 'GLOB', 'jsonl': 'GLOB',
           'tfds': 'NAME', 'markov': 'STATES', 'copy': 'SYMBOLS', 'reverse': 'SYMBOLS'}
METRICS = ('nll', 'perplexity', 'accuracy', 'bits_per_byte')
DURATIONS = ('stop.wall_time', 'watchdog.start', 'watchdog.step')
NEEDS = {
    bool: 'true or false',
    int: 'a whole number below 2^63, such as 12, 1_000, 250K, 2.5M, 20B or 1e6',
    float: 'a finite number, such as 0.1, 2 or 3e-4',
    str: 'text',
    tuple: "a tuple of texts, such as ('a', 'b')",
    dict: "a dict of named arguments, such as {'momentum': 0.9}",
}
SECTIONS = {name: v for name, v in base().items() if isinstance(v, ml_collections.ConfigDict)}


def flatten(config):
  """{'seed': 0, 'data.source': ...}: every key with its value, keys without a section first."""
  flat, sections = {}, {}
  for name in vars(config)['_fields']:  # in the order of configs/base.py; keys() would sort
    value = config[name]
    if isinstance(value, ml_collections.ConfigDict) and name in SECTIONS:
      sections.update({f'{name}.{key}': value[key] for key in vars(value)['_fields']})
    else:
      flat[str(name)] = value
  return {key: v.to_dict() if isinstance(v, ml_collections.ConfigDict) else v
          for key, v in {**flat, **sections}.items()}


DEFAULTS = flatten(base())


def load(path, overrides=()):
  """Locked ConfigDict of the file `path` or `path:variant`, changed by 'section.key=value' texts.

  Raises ConfigError, which says where and what would work, whatever is wrong with either.
  """
  path, _, arg = str(path).partition(':')
  flat = _read(pathlib.Path(path), arg)
  for item in overrides:
    _override(flat, item)
  flat = {key: _normal(key, value) for key, value in flat.items()}
  return _check(flat, f'{path} with the command line' if overrides else path)


def validate(config):
  """Raises ConfigError listing what is wrong with a config: keys, types, ranges, combinations."""
  _check(flatten(config), 'config')


# --- Reading files and the command line -----------------------------------------------------------


def _read(file, arg):
  """Flat dict of what `get_config(arg)` of the file returns."""
  if not file.is_file():
    names = [f.name for f in file.parent.glob('*.py')] if file.parent.is_dir() else []
    near = difflib.get_close_matches(file.name, names, 1, 0.4)
    raise ConfigError(f'{file}: there is no such config file. ' + (
        f'Did you mean {file.parent / near[0]}?' if near else
        f'That folder holds {", ".join(sorted(names)) or "no configs"}.' if file.parent.is_dir()
        else f'There is no folder {file.parent} in {pathlib.Path.cwd()} either.'))
  for folder in file.resolve().parents:
    if folder.name == 'configs' and str(folder.parent) not in sys.path:
      sys.path.append(str(folder.parent))
  try:
    return _call(file, arg)
  except ConfigError:
    raise
  except (Exception, SystemExit) as e:
    raise ConfigError(_explain(e, str(file))) from e


def _call(file, arg):
  # Compiled here, not imported: no stale bytecode, and the same tree tells the variants.
  tree = ast.parse(file.read_bytes(), str(file))
  names = {'__name__': file.stem, '__file__': str(file)}
  exec(compile(tree, str(file), 'exec'), names)
  if not callable(names.get('get_config')):
    raise ConfigError(f"{file}: it has no function get_config. Write: def get_config(arg=''):")
  get_config = names['get_config']
  takes = list(inspect.signature(get_config).parameters)[:1]
  config = get_config(arg) if takes else get_config()
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(f'{file}: get_config returned {_show(config)}, not a config. '
                      'Let it begin with c = base() and end with return c.')
  flat = flatten(config)
  if arg and not (takes and _knows(get_config, tree, takes[0], arg, flat)):
    found = _variants(tree, takes[0]) if takes else []
    raise ConfigError(f'{file} has no variant {arg!r}. ' + (
        f'Use {file}:{_either(found)}.' if found else f'It has none at all: use {file}.'))
  return flat


def _knows(get_config, tree, name, arg, flat):
  """Whether a variant is known: named in the file, or different from the config without one."""
  if arg in _variants(tree, name):
    return True
  try:
    return flatten(get_config('')) != flat
  except Exception:  # a file that insists on a variant, and took this one
    return True


def _variants(tree, name):
  """The texts that a file compares its variable `name` with."""
  found = []
  for node in ast.walk(tree):
    sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
    if any(isinstance(side, ast.Name) and side.id == name for side in sides):
      found += [n.value for side in sides for n in ast.walk(side)
                if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value]
  return list(dict.fromkeys(found))


def _explain(e, file):
  """An error inside a config file in one line, with the file's line and the key it was about."""
  if isinstance(e, SyntaxError):
    return f'{e.filename or file}:{e.lineno}: not valid Python: {e.msg}.'
  frames = list(traceback.walk_tb(e.__traceback__))
  lines = [n for frame, n in frames if frame.f_code.co_filename == file]
  where = f'{file}:{lines[-1]}' if lines else file
  local = frames[-1][0].f_locals
  config, key = local.get('self'), local.get('key', local.get('attribute'))
  if isinstance(config, ml_collections.ConfigDict) and isinstance(key, str) and key not in config:
    sections = {frozenset(v): f'{name}.' for name, v in SECTIONS.items()}
    sections[frozenset()] = 'optimizer.extra.'  # which is empty, and locked too
    key = sections.get(frozenset(config), '') + key
    return f'{where}: {_unknown(key, key)}'
  return f'{where}: {type(e).__name__}: {e}'


def _override(flat, item):
  key, equals, text = item.partition('=')
  key = re.sub(r'^(--)?(config\.)?', '', key.strip())
  extra = key.removeprefix('optimizer.extra.')
  if not equals:
    raise ConfigError(f'--config.{key}: no value given. Write --config.{key or "KEY"}=VALUE.')
  if extra != key and isinstance(flat.get('optimizer.extra'), dict):
    value = _literal(text)
    value = text if value is None and text != 'None' else value
    flat['optimizer.extra'] = {**flat['optimizer.extra'], extra: value}
  elif key in DEFAULTS:
    flat[key] = _parse(key, text)
    if flat[key] is None:
      raise ConfigError(f'--config.{key}={_cut(text)}: needs {_needs(key)}.')
  else:
    raise ConfigError(_unknown(key, f'--config.{key}={_cut(text)}'))


def _unknown(key, asked):
  """What to say of a key that does not exist: the nearest that do."""
  inside = [k for k in DEFAULTS if k.startswith(f'{key}.')]
  if inside:
    return f'{asked}: {key} is a section. Set one of its keys: {", ".join(inside)}.'
  if key.startswith('optimizer.extra.'):
    return f'{asked}: unknown key. Write c.optimizer.extra = dict(...), which replaces it whole.'
  last = key.rpartition('.')[2]
  tails = {k: k.rpartition('.')[2] for k in DEFAULTS}
  same = [k for k, tail in tails.items() if tail == last]
  close = difflib.get_close_matches(last, tails.values(), 1)
  near = (
      ['stop.tokens'] * (last in ('steps', 'num_steps', 'train_steps', 'total_steps', 'max_steps'))
      # learning_rate for lr
      or [k for k, tail in tails.items()
          if len(last) > 1 and last == ''.join(word[0] for word in tail.split('_'))]
      or difflib.get_close_matches(key, same or DEFAULTS, 1, 0.8) or same
      or [k for k in tails if tails[k] in close])
  return f'{asked}: unknown key. ' + (
      f'Did you mean {_either(near[:4])}?' if near else 'configs/base.py lists them all.')


# --- Values ---------------------------------------------------------------------------------------


def _parse(key, text):
  """The value of `key` that a text stands for; None when it stands for none."""
  kind, plain = type(DEFAULTS[key]), text.strip()
  if kind is bool:
    return {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}.get(
        plain.lower())
  if kind is int:
    m = re.fullmatch(r'([+-]?[0-9_.]*[0-9](?:e[+-]?[0-9]{1,2})?)\s*([kmbt]?)', plain.lower())
    try:
      n = fractions.Fraction(m[1].replace('_', '')) * 1000 ** ' kmbt'.index(m[2] or ' ')
    except (TypeError, ValueError):
      return None
    return int(n) if n.denominator == 1 else None
  if kind is float:
    m = re.fullmatch(r'(.*?)\s*(s|min|h|d)', plain) if key in DURATIONS else None
    try:
      value = float(m[1]) * {'s': 1, 'min': 60, 'h': 3600, 'd': 86400}[m[2]] if m else float(plain)
    except ValueError:
      return None
    return value if math.isfinite(value) else None
  if kind is tuple:
    value = _literal(plain) if plain[:1] + plain[-1:] in ('()', '[]') else (text,)
    return (value,) if isinstance(value, str) else value if _fits(value, tuple) else None
  if kind is dict:
    value = _literal(plain)
    return value if _fits(value, dict) else None
  return text


def _literal(text):
  """The Python value that a text spells, with tuples for lists; None when it spells none."""
  try:
    return _tuples(ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text)))
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return None


def _tuples(value):
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _normal(key, value):
  """A config file's value in its key's own type, where nothing is lost by it."""
  kind = type(DEFAULTS.get(key))
  if isinstance(value, str) and kind in (int, float):
    number = _parse(key, value)
    return value if number is None else number
  if kind is float and type(value) is int and _fits(value, float):
    return float(value)
  if kind is int and isinstance(value, float) and value.is_integer():
    return int(value)
  return _tuples(value) if kind in (tuple, dict) else value


def _fits(value, kind):
  if kind is tuple:
    return isinstance(value, tuple) and all(isinstance(v, str) for v in value)
  if kind is dict:
    try:
      json.dumps(value, allow_nan=False)
      return isinstance(value, dict) and all(
          isinstance(k, str) and k.isidentifier() for k in value)
    except (TypeError, ValueError, RecursionError):
      return False
  if isinstance(value, bool) or kind is bool:  # Python counts True as a number; we do not
    return type(value) is kind
  if kind is float:
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max  # not nan
  return isinstance(value, kind) and (kind is not int or abs(value) < 2 ** 63)


def _needs(key):
  return ('seconds, or a duration such as 30s, 90min, 2h or 1d' if key in DURATIONS
          else NEEDS[type(DEFAULTS[key])])


def _show(value):
  try:
    text = repr(value)
  except ValueError:  # Python refuses to print numbers of more than 4300 digits
    return 'a huge number'
  return _cut(text)


def _cut(text):
  return text if len(text) <= 80 else f'{text[:77]}...'


def _either(names):
  *most, last = map(str, names)
  return f'{", ".join(most)} or {last}' if most else last


# --- Rules ----------------------------------------------------------------------------------------


def _check(flat, where):
  """The config of a flat dict. Raises ConfigError with all that is wrong with it."""
  problems = list(_single(flat))
  if not problems:
    config = base().unlock()
    for key, value in flat.items():
      section, _, name = key.rpartition('.')
      (config[section] if section else config)[name] = value
    config.lock()
    problems = [p for rules in (_data, _model, _batch, _schedule) for p in rules(config)]
  if not problems:
    return config
  more = [f'and {len(problems) - 5} more'] if len(problems) > 5 else []
  raise ConfigError(f'{where}: {problems[0]}' if len(problems) == 1 else '\n  '.join(
      [f'{where} has {len(problems)} problems:', *problems[:5], *more]))


def _single(flat):
  """Problems of keys by themselves: unknown, missing, of a wrong type, outside what they may be."""
  for key, value in flat.items():
    if key not in DEFAULTS:
      yield _unknown(key, f'{key}={_show(value)}')
      continue
    asked, kind = f'{key}={_show(value)}', type(DEFAULTS[key])
    if not _fits(value, kind):
      yield f'{asked}: needs {_needs(key)}.'
    elif key in CHOICES and value not in CHOICES[key]:
      near = difflib.get_close_matches(value.lower(), CHOICES[key], 1)
      yield (f'{asked}: ' + (f'did you mean {near[0]!r}? ' if near else '') +
             f'There is {_either(CHOICES[key])}.')
    elif key in RANGES and not _inside(value, RANGES[key]):
      yield f'{asked}: must be {_in_words(RANGES[key])}.'
    elif kind is str and DEFAULTS[key] and not value.strip():
      yield f'{asked}: must not be empty. The default is {DEFAULTS[key]!r}.'
  for key in DEFAULTS:
    section = key.partition('.')[0]
    if key not in flat and section not in flat:
      yield f'{key}: missing. Write c.{section}.update(...), which keeps the keys it does not name.'


def _inside(value, interval):
  low, high = map(float, interval[1:-1].split(','))
  return ((value >= low if interval[0] == '[' else value > low) and
          (value <= high if interval[-1] == ']' else value < high))


def _in_words(interval):
  low, high = interval[1:-1].split(', ')
  least = f'{"at least" if interval[0] == "[" else "above"} {low}'
  return least + (f' and {"at most" if interval[-1] == "]" else "below"} {high}'
                  if high != 'inf' else '')


def _data(c):
  d, v = c.data, c.vocabulary
  kind, colon, rest = d.source.partition(':')
  wants = SOURCES.get(kind)
  asked = f'data.source={_show(d.source)}'
  if wants is None:
    near = difflib.get_close_matches(kind, SOURCES, 1)
    kinds = _either([f'{k}:{w}' if w else k for k, w in SOURCES.items()])
    yield (f'{asked}: unknown kind. ' + (f'Did you mean {near[0]!r}? ' if near else '') +
           f'There is {kinds}.')
  elif bool(rest) != bool(wants) or bool(colon) != bool(wants):
    yield f'{asked}: write {kind}{":" * bool(wants)}{wants}.'
  elif wants in ('STATES', 'SYMBOLS') and not (rest.isdecimal() and 2 <= int(rest[:9]) <= 26):
    yield f'{asked}: {wants} is a number from 2 to 26, as in {kind}:8.'
  if d.validation in ('hash', 'tail'):
    if not 0 < d.validation_fraction < 1:
      yield (f'data.validation_fraction={d.validation_fraction}: must be above 0 and below 1, '
             f'such as 0.01, for data.validation={d.validation!r}.')
  elif kind != 'tfds':
    yield (f'data.validation={_show(d.validation)}: only TFDS datasets have named splits, and '
           f"data.source is {_show(d.source)}. Use 'hash' or 'tail'.")
  if d.document_mask and v.name == 'characters' and not v.specials:
    yield ('data.document_mask=True: needs an end-of-document token, and vocabulary.specials=False '
           'has none. Set data.document_mask=False or vocabulary.specials=True.')
  if c.loss.chunks > 1 and d.seq_len % c.loss.chunks:
    yield (f'loss.chunks={c.loss.chunks}: must divide data.seq_len={d.seq_len}. '
           f'Use {_divisors(c.loss.chunks, d.seq_len)}, or 0 to have it chosen.')
  least = 260 + v.sentinels  # padding, end, unknown, 256 bytes, sentinels and one piece of text
  if v.name == 'sentencepiece' and not v.path and v.size < least:
    yield (f'vocabulary.size={v.size}: too small for 3 special tokens, 256 bytes and '
           f'vocabulary.sentinels={v.sentinels}. Use at least {least}, better 1024 and more.')


def _model(c):
  m, r = c.model, resolve(c).model
  if not m.head_dim and m.d_model % m.num_heads:
    yield (f'model.num_heads={m.num_heads}: must divide model.d_model={m.d_model}. '
           f'Use {_divisors(m.num_heads, m.d_model)}, or set model.head_dim.')
  elif m.position == 'rope' and r.head_dim % 2:
    made = '' if m.head_dim else ' (d_model / num_heads)'
    yield (f"model.head_dim={r.head_dim}{made}: must be even for model.position='rope'. "
           f'Use model.head_dim={r.head_dim + 1}.')
  if m.num_heads % r.num_kv_heads:
    yield (f'model.num_kv_heads={m.num_kv_heads}: must divide model.num_heads={m.num_heads}. '
           f'Use {_divisors(m.num_kv_heads, m.num_heads)}.')
  if m.position == 'learned' and c.data.seq_len > m.max_positions:
    yield (f'data.seq_len={c.data.seq_len}: longer than the table of learned positions. '
           f'Use at most model.max_positions={m.max_positions}, or raise that.')
  needs = _vocab_size(c)
  if 0 < m.vocab_size < needs:
    yield (f'model.vocab_size={m.vocab_size}: the vocabulary has {needs} tokens. '
           f'Use at least {needs} (better {_up(needs, 128)}), or 0 to have it rounded up.')
  for axis, keys in (('tensor', 'num_heads num_kv_heads d_ff vocab_size'), ('fsdp', 'd_model')):
    n = c.mesh[axis]
    for key in keys.split():
      if n > 1 and r[key] % n and (key, r.num_kv_heads) != ('num_kv_heads', r.num_heads):
        yield (f'mesh.{axis}={n}: must divide model.{key}={r[key]}. '
               f'Use mesh.{axis}={_divisors(n, r[key])}, or model.{key}={_up(r[key], n)}.')
  if 'learning_rate' in c.optimizer.extra:
    yield 'optimizer.extra.learning_rate: set optimizer.learning_rate instead.'
  try:
    re.compile(c.optimizer.decay_mask)
  except (re.error, RecursionError, OverflowError) as e:
    yield (f'optimizer.decay_mask={_show(c.optimizer.decay_mask)}: not a regular expression: {e}. '
           f"The default is {DEFAULTS['optimizer.decay_mask']!r}.")


def _batch(c):
  sizes = {f'mesh.{axis}': c.mesh[axis] for axis in ('data', 'fsdp', 'tensor')}
  for key, n in sizes.items():
    if n < 1 and n != -1:
      yield f'{key}={n}: must be at least 1, or -1 for all devices that are left.'
  left = [key for key, n in sizes.items() if n == -1]
  if len(left) > 1:
    yield (f'{"=-1, ".join(left)}=-1: only one axis can take the devices that are left. '
           'Give all others a number.')
  b, m = c.batch_size, c.microbatches
  shards = max(c.mesh.data, 1) * max(c.mesh.fsdp, 1)
  if b % m or b // m % shards:
    unit = m * shards
    by = 'microbatches' + ' x mesh.data x mesh.fsdp' * (shards > 1)
    yield (f'batch_size={b}: must be divisible by {by} = {unit}. '
           f'Use {_either(sorted({max(b // unit, 1) * unit, _up(b, unit)}))}.')


def _schedule(c):
  s, numbers = c.schedule, derived(c)
  per_step, steps, decay = numbers['tokens_per_step'], numbers['steps'], numbers['decay_steps']
  if c.stop.tokens < per_step:
    yield (f'stop.tokens={c.stop.tokens:,}: less than one step of batch_size x data.seq_len = '
           f'{c.batch_size} x {c.data.seq_len}. Use at least {per_step:,}.')
  elif s.warmup_steps + decay > steps:
    also = f' and {decay:,} steps of decay are' if decay else ':'
    other = 'lower schedule.decay_fraction' if decay else (
        f'raise stop.tokens to {s.warmup_steps * per_step:,}')
    yield (f'schedule.warmup_steps={s.warmup_steps:,}{also} more than all {steps:,} steps of '
           f'{per_step:,} tokens. Use at most {steps - decay:,}, or {other}.')
  try:
    parse_target(c.stop.target or 'nll < 1')
  except ConfigError as e:
    yield str(e)


def parse_target(text):
  """('nll', '<=', 1.5) from 'nll <= 1.5'. Raises ConfigError."""
  m = re.fullmatch(r'\s*(\w+)\s*(<=|<|>=|>)\s*(\S+)\s*', text)
  value = _parse('loss.z_loss', m[3]) if m else None
  if value is None:
    raise ConfigError(f'stop.target={_show(text)}: write a metric, one of <= < >= >, and a number, '
                      f"as in 'nll <= 1.5'. Metrics are {_either(METRICS)}.")
  if m[1] not in METRICS:
    near = difflib.get_close_matches(m[1], METRICS, 1)
    raise ConfigError(f'stop.target={_show(text)}: unknown metric {m[1]!r}. ' + (
        f'Did you mean {near[0]!r}? ' if near else '') + f'There is {_either(METRICS)}.')
  return m[1], m[2], value


def _up(n, unit):
  return -(-n // unit) * unit


def _divisors(near, n):
  """The divisors of n nearest to a number, for people to choose from."""
  best = sorted((d for d in range(1, 1025) if n % d == 0), key=lambda d: abs(d - near))
  return _either(sorted(best[:3]))


# --- What follows from a config, and how two compare ----------------------------------------------


def _vocab_size(c):
  """Number of tokens, or 0 where only the data or a file tells."""
  v = c.vocabulary
  return {'bytes': 259 + v.sentinels, 'sentencepiece': 0 if v.path else v.size}.get(v.name, 0)


def resolve(config):
  """A copy with those zeros of `config.model` filled in that follow from the config alone.

  vocab_size stays 0 where the vocabulary's size is known only once it is made or read.
  """
  config = config.copy_and_resolve_references()
  m = config.model
  m.num_kv_heads = m.num_kv_heads or m.num_heads
  m.head_dim = m.head_dim or m.d_model // m.num_heads
  gated = m.activation in ('swiglu', 'geglu')  # three matrices, so 2/3 of the width
  m.d_ff = m.d_ff or (_up(-(-8 * m.d_model // 3), 128) if gated else 4 * m.d_model)
  m.vocab_size = m.vocab_size or _up(_vocab_size(config), 128)
  return config


def derived(config):
  """Numbers that follow from a config: steps, tokens (of those steps, so stop.tokens or a little
  more), tokens_per_step, microbatch_size, warmup_share, and decay_steps (0 unless wsd)."""
  per_step = config.batch_size * config.data.seq_len
  steps = -(-config.stop.tokens // per_step)
  wsd = config.schedule.name == 'wsd'
  return dict(tokens_per_step=per_step, steps=steps, tokens=steps * per_step,
              microbatch_size=config.batch_size // config.microbatches,
              warmup_share=config.schedule.warmup_steps / max(1, steps),
              decay_steps=max(1, round(config.schedule.decay_fraction * steps)) if wsd else 0)


def to_json(config):
  """Text that `from_json` turns into an equal config."""
  return json.dumps(config.to_dict(), indent=2)


def from_json(text):
  """Locked config of a text by `to_json`, also one of an older version, with other keys."""
  try:
    values = _tuples(json.loads(text))
    return ml_collections.ConfigDict(values, type_safe=False).lock()
  except (ValueError, TypeError, AttributeError) as e:
    raise ConfigError(f'not the text of a config: {e}. It begins with {_show(text[:60])}.') from e


def differences(old, new):
  """[(key, old value, new value)] of all keys that differ; one that is missing has its default."""
  old, new = ({**DEFAULTS, **flatten(c)} for c in (old, new))
  return [(k, old.get(k), new.get(k)) for k in {**new, **old} if old.get(k) != new.get(k)]


def check_resumable(old, new, where):
  """Allowed differences between the config of the run in `where` and one that is to go on with it.

  Raises ConfigError when others differ than those in ALLOWED and in `new.allow_changed`.
  """
  also = [re.sub(r'^(--)?config\.', '', key.strip()) for key in new.allow_changed.split(',')]
  changed = differences(old, new)
  refused = [(k, a, b) for k, a, b in changed
             if not any(f'{k}.'.startswith(f'{p}.') for p in (*ALLOWED, *also))]
  if refused:
    keys = ','.join(k for k, _, _ in refused)
    raise ConfigError('\n  '.join(
        [f'{where} holds a run of another config:', *(
            f'{k}: {_show(a)} there, {_show(b)} now' for k, a, b in refused)]) +
        f'\nTo go on with the values of now, add --config.allow_changed={keys}; '
        'to begin anew, give another --workdir.')
  return changed


def describe(config):
  """[(key, value, whether it differs from base())], keys without a section first."""
  flat = {**DEFAULTS, **flatten(config)}
  return [(k, v, k not in DEFAULTS or v != DEFAULTS[k]) for k, v in flat.items()]
