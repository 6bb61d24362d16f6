"""Special tokens of tokenizers that other programs made: which ids begin and end texts, pad, mask and so on.

They are those that the tokenizer's folder names, in the order in which transformers 5.23 looks: the config first (key
vocabulary.special), then tokenizer_config.json and the older special_tokens_map.json, then the defaults of the class of
tokenizer that the folder names, then the tokenizer's own file, then generation_config.json and config.json. A token is
never special because of its name alone: an ordinary piece of the vocabulary may be called </s>. The default of a
class counts only where the tokenizer's file marks that token as special.

The result is kept in the vocabulary file, beside the tokenizer's own (`wrap`), so that it goes wherever that goes.
"""
import base64
import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from t5like.errors import ConfigError
from t5like.files import plain_json, schema
from t5like.vocabulary.tokenizer_classes import AROUND, CLASS_OF, CLASSES

ROLES = ('bos', 'eos', 'pad', 'unk', 'mask', 'cls', 'sep')  # named by tokenizers
KEYS = (*ROLES, 'start')  # of config.vocabulary.special
SENTINEL = re.compile('\u2581?<extra_id_(0|[1-9][0-9]{0,8})>')  # mT5 has them as pieces that begin with a space
FIRST = b'{"t5like": "vocabulary"'  # how a vocabulary file with special tokens begins
# Tokenizers have many pieces and merges: Gemma's, the largest we know, 262,144 and 514,906 in 33 MB.
LARGE = schema.Limits(size=256 << 20, values=5_000_000, depth=100)

# Shapes of the files of a tokenizer's folder.
TEXT = schema.Text(4096)
TOKEN_OBJECT = schema.Object(dict(content=TEXT))
TOKEN = schema.Maybe(schema.Either((TEXT, TOKEN_OBJECT)))
TOKENS = {f'{role}_token': TOKEN for role in ROLES}
TOKENS_IN_LIST = schema.List(schema.Either((TEXT, schema.Object())), most=100_000)
TOKEN_LIST = schema.Maybe(schema.Either((TOKENS_IN_LIST, schema.Object())))
ADDED_TOKEN = schema.Object(
    dict(content=TEXT),
    needs=('content',),
)
ADDED_TOKENS = schema.Maybe(schema.Object(rest=ADDED_TOKEN))
MODEL_ID = schema.Whole(-1, 1 << 31)
MODEL_IDS = schema.List(MODEL_ID, most=4096)
ID = schema.Maybe(schema.Either((MODEL_ID, MODEL_IDS)))
MODEL_ROLES = ('bos', 'eos', 'pad', 'decoder_start')  # named by configs of models
IDS = {f'{role}_token_id': ID for role in MODEL_ROLES}
CLASS = schema.Maybe(schema.Text(200))
FLAG = schema.Maybe(schema.Flag())
TOKENIZER_CONFIG = 'tokenizer_config.json'
GENERATION_CONFIG = 'generation_config.json'
MODEL_CONFIG = 'config.json'
TOKENIZER_SETTINGS = dict(
    TOKENS,
    tokenizer_class=CLASS,
    add_bos_token=FLAG,
    add_eos_token=FLAG,
    additional_special_tokens=TOKEN_LIST,
    extra_special_tokens=TOKEN_LIST,
    extra_ids=schema.Maybe(schema.Whole(0, 100_000)),
    added_tokens_decoder=ADDED_TOKENS,
)
GENERATION_SETTINGS = dict(
    IDS,
    suppress_tokens=schema.Maybe(schema.List(MODEL_ID)),
)
MODEL_SETTINGS = dict(
    IDS,
    tokenizer_class=CLASS,
    model_type=CLASS,
)
FILES = {  # read beside a tokenizer, each with its shape
    TOKENIZER_CONFIG: schema.Object(TOKENIZER_SETTINGS),
    'added_tokens.json': schema.Object(rest=schema.Whole(0, 1 << 31)),
    'special_tokens_map.json': schema.Object(TOKENS),
    GENERATION_CONFIG: schema.Object(GENERATION_SETTINGS),
    MODEL_CONFIG: schema.Object(MODEL_SETTINGS),
}
# The shape of special tokens in a vocabulary file.
KEPT_ID = schema.Maybe(schema.Whole(0, 1 << 31))
KEPT_LIST = schema.List(schema.Whole(0, 1 << 31), most=1_000_000)
KEPT_FIELDS = dict(
    dict.fromkeys(KEYS, KEPT_ID),
    stops=KEPT_LIST,
    suppress=schema.Maybe(KEPT_LIST),
    before=KEPT_LIST,
    after=KEPT_LIST,
)
KEPT = schema.Object(KEPT_FIELDS, needs=KEYS, rest=None)
VOCABULARY_FILE = schema.Object(
    dict(special=KEPT),
    needs=('kind', 'special', 'file'),
)

Ids = tuple[int, ...]
Settings = Mapping[str, Mapping[str, Any]]  # values of the files beside a tokenizer


@dataclasses.dataclass(frozen=True)
class Special:
  """Ids of special tokens; None where the tokenizer has no such token.

  Attributes:
    bos: begins a text of a decoder.
    eos: ends a document.
    pad: padding.
    unk: stands for text that has no id.
    mask: replaces a token in masked language models.
    cls: begins a row of masked language models.
    sep: ends a row that begins with `cls`.
    start: begins the decoder's side of an encoder-decoder.
    stops: where generated text ends.
    suppress: ids that are never generated; None: padding and the unknown token.
    before: ids that the tokenizer puts before a text.
    after: ids that it puts after a text.
  """
  bos: int | None = None
  eos: int | None = None
  pad: int | None = None
  unk: int | None = None
  mask: int | None = None
  cls: int | None = None
  sep: int | None = None
  start: int | None = None
  stops: Ids = ()
  suppress: Ids | None = None
  before: Ids = ()
  after: Ids = ()


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """The content of a tokenizer's own file.

  Attributes:
    ids: {token: id}.
    special: texts of the tokens that are marked as special.
    own: {role: id} of tokens to which the file gives a role.
    before: ids that it puts before a text, None where the file does not say.
    after: ids that it puts after a text, None where the file does not say.
    byte_level: whether its pieces are written in bytes.
    added: texts of the tokens that were added to the model's own.
  """
  ids: Mapping[str, int]
  special: Collection[str]
  own: Mapping[str, int] = dataclasses.field(default_factory=dict)
  before: Ids | None = None
  after: Ids | None = None
  byte_level: bool = False
  added: Collection[str] = ()

  @property
  def size(self) -> int:
    """The largest id and one."""
    largest = max(self.ids.values(), default=-1)
    return largest + 1


def parse_files(
    contents: Mapping[str, bytes],
    folder: Any,
) -> dict[str, dict[str, Any]]:
  """The values of the files beside a tokenizer.

  Args:
    contents: {name, one of FILES: content}.
    folder: that holds them, for errors.

  Raises:
    ConfigError: a file is damaged or has another shape.
  """
  values = {}
  for name, content in contents.items():
    try:
      values[name] = schema.parse(content, FILES[name], LARGE)
    except schema.Invalid as error:
      raise ConfigError(schema.sentence(f'{folder}/{name}', error)) from error
  return values


def read(
    tokenizer: Tokenizer,
    files: Settings,
    chosen: Mapping[str, Any],
    path: Any,
) -> Special:
  """The special tokens of a tokenizer.

  Args:
    tokenizer: the content of its own file.
    files: values of those of FILES that lie beside it.
    chosen: config.vocabulary.special, which comes first: {role: text of a token, its id, or '' for none}.
    path: of the tokenizer, for errors.

  Raises:
    ConfigError: the vocabulary does not have a token.
  """
  kind = class_of(tokenizer, files)
  model = {}
  for role in MODEL_ROLES:
    model[role] = _model_ids(files, f'{role}_token_id', tokenizer.size)
  ids = _role_ids(tokenizer, files, kind, model, path)
  for role, value in chosen.items():
    ids[role] = _chosen(role, value, tokenizer, path)
  if ids['eos'] is None and 'eos' not in chosen:
    ids['eos'] = ids['sep']  # the end of BERT's rows is also the end of its documents
  settings = files.get(TOKENIZER_CONFIG, {})
  before, after = _around(kind, tokenizer, ids, settings)
  if ids['bos'] is None and 'bos' not in chosen:
    ids['bos'] = _first_of(before, ids['cls'])
  stops = _present(ids['eos'])
  if model['eos'] and 'eos' not in chosen:
    stops = model['eos']
  return Special(
      **ids,
      stops=stops,
      suppress=_suppressed(files),
      before=before,
      after=after,
  )


def _role_ids(
    tokenizer: Tokenizer,
    files: Settings,
    kind: str,
    model: Mapping[str, Ids],
    path: Any,
) -> dict[str, int | None]:
  """{role: id or None} of all KEYS, without config.vocabulary.special; arguments as of `_role`."""
  named = _named(files)
  defaults = CLASSES.get(kind, {})
  ids = {}
  for role in ROLES:
    ids[role] = _role(role, tokenizer, named, defaults, model, path)
  ids['start'] = None
  if model['decoder_start']:
    ids['start'] = model['decoder_start'][0]
  return ids


def _first_of(before: Ids, cls: int | None) -> int | None:
  """The beginning of a text, from the ids that a tokenizer puts before it: a single one that is not `cls`."""
  if len(before) == 1 and before[0] != cls:
    return before[0]
  return None


def _present(*ids: int | None) -> Ids:
  return tuple(i for i in ids if i is not None)


def class_of(tokenizer: Tokenizer, files: Settings) -> str:
  """The class with which transformers loads a folder's tokenizer; '' for its generic one, which knows no names."""
  model_config = files.get(MODEL_CONFIG, {})
  settings = files.get(TOKENIZER_CONFIG, {})
  named = settings.get('tokenizer_class') or model_config.get('tokenizer_class') or ''
  kind = named.removesuffix('Fast')
  if not kind:
    model_type = model_config.get('model_type') or ''
    kind = CLASS_OF.get(model_type, '')
  if kind == 'LlamaTokenizer' and tokenizer.byte_level:
    # Llama's class is for SentencePiece; folders that name it beside pieces of bytes are read without it.
    return ''
  return kind


def _named(files: Settings) -> dict[str, str | None]:
  """{role: text} of the tokens that the tokenizer's settings name; None: there is no token of that role."""
  settings = files.get(TOKENIZER_CONFIG, {})
  sources = [settings]
  if settings.get('added_tokens_decoder') is None:
    sources.append(files.get('special_tokens_map.json', {}))
  named = {}
  for source in sources:
    for role in ROLES:
      key = f'{role}_token'
      if key in source:
        named[role] = _text_of(source[key])
  return named


def _text_of(token: Any) -> str | None:
  """The text of a token that is written as a text, or as an object with one."""
  if isinstance(token, dict):
    return token.get('content')
  return token


def _model_ids(
    files: Settings,
    key: str,
    size: int,
) -> Ids:
  """Ids that generation_config.json, or else config.json, has under a key, without those beyond the vocabulary."""
  for name in (GENERATION_CONFIG, MODEL_CONFIG):
    value = files.get(name, {}).get(key)
    if value is None:
      value = []
    elif not isinstance(value, list):
      value = [value]
    ids = tuple(i for i in value if 0 <= i < size)
    if ids:
      return ids
  return ()


def _role(
    role: str,
    tokenizer: Tokenizer,
    named: Mapping[str, str | None],
    defaults: Mapping[str, str],
    model: Mapping[str, Ids],
    path: Any,
) -> int | None:
  """The id of the token with a role.

  Args:
    role: one of ROLES.
    tokenizer: the content of its own file.
    named: {role: text} of the files beside it.
    defaults: {role: text} of its class.
    model: {role: ids} of the model's configs.
    path: of the tokenizer, for errors.
  """
  text = named.get(role)
  if text and text in tokenizer.ids:
    return tokenizer.ids[text]
  if text and role not in ('pad', 'unk'):
    raise ConfigError(f'The settings beside {path} name {role}_token={text!r}, which that tokenizer does not have. '
                      f"Correct tokenizer_config.json, or say which token it is: {flag(role)}'...'.")
  default = defaults.get(role)
  if default is not None and role not in named and default in tokenizer.special:
    return tokenizer.ids[default]
  if role in tokenizer.own:
    return tokenizer.own[role]
  ids = model.get(role, ())
  if len(ids) == 1:
    return ids[0]
  return None


def _chosen(
    role: str,
    value: Any,
    tokenizer: Tokenizer,
    path: Any,
) -> int | None:
  """The id of a token that config.vocabulary.special names."""
  if value == '':
    return None
  if isinstance(value, str) and value in tokenizer.ids:
    return tokenizer.ids[value]
  if isinstance(value, int) and 0 <= value < tokenizer.size:
    return value
  raise ConfigError(f'vocabulary.special.{role}={value!r}: {path} has no such token. Give the text of one of its '
                    f"{tokenizer.size:,} tokens, an id below that, or '' where there is none.")


def _around(
    kind: str,
    tokenizer: Tokenizer,
    ids: Mapping[str, int | None],
    settings: Mapping[str, Any],
) -> tuple[Ids, Ids]:
  """Ids that a tokenizer puts before and after a text; kind: its class; settings: tokenizer_config.json."""
  if kind not in AROUND and tokenizer.before is not None and tokenizer.after is not None:
    return tokenizer.before, tokenizer.after
  before = _added('bos', settings)
  after = _added('eos', settings)
  if kind in AROUND:
    before, after = AROUND[kind]
  return _ids_of(before, ids), _ids_of(after, ids)


def _ids_of(roles: Iterable[str], ids: Mapping[str, int | None]) -> Ids:
  return _present(*[ids[role] for role in roles])


def _added(role: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
  if settings.get(f'add_{role}_token'):
    return (role,)
  return ()


def _suppressed(files: Settings) -> Ids | None:
  """Ids that a model never generates; None beside a tokenizer alone, where nothing is known of that."""
  if GENERATION_CONFIG not in files and MODEL_CONFIG not in files:
    return None
  generation = files.get(GENERATION_CONFIG, {})
  suppressed = generation.get('suppress_tokens') or ()
  return tuple(i for i in suppressed if i >= 0)


def flag(role: str) -> str:
  """The flag that names the token of a role, up to its value."""
  return f'--config.vocabulary.special.{role}='


def sentinels(ids: Mapping[str, int], special: Collection[str] = ()) -> list[int]:
  """Ids of <extra_id_0>, <extra_id_1>, .. up to the first that is missing.

  Args:
    ids: {token: id}.
    special: tokens that are marked as special; of two forms of a sentinel the marked one counts.
  """
  by_number = {}
  marked_last = sorted(ids, key=lambda text: text in special)
  for text in marked_last:
    match = SENTINEL.fullmatch(text)
    if match:
      number = int(match[1])
      by_number[number] = ids[text]
  in_order = []
  while len(in_order) in by_number:
    in_order.append(by_number[len(in_order)])
  return in_order


def of_vocabulary(vocabulary: Any) -> Special:
  """The special tokens of a vocabulary of any kind."""
  ids = {role: getattr(vocabulary, f'{role}_id') for role in KEYS}
  return Special(
      **ids,
      stops=tuple(vocabulary.stop_ids),
      suppress=tuple(vocabulary.suppressed),
      before=tuple(vocabulary.before),
      after=tuple(vocabulary.after),
  )


# --- Files ----------------------------------------------------------------------------------------


def wrap(
    kind: str,
    special: Special,
    file: bytes,
) -> bytes:
  """The content of a vocabulary file: a tokenizer's file, as it is, with its special tokens.

  Args:
    kind: the config's `vocabulary.name`.
    special: the tokens.
    file: content of the tokenizer's file.
  """
  fields = dict(
      t5like='vocabulary',
      kind=kind,
      special=dataclasses.asdict(special),
      file=base64.b64encode(file).decode(),
  )
  return plain_json.dumps(fields).encode()


def unwrap(kind: str, content: bytes) -> tuple[bytes, Special | None]:
  """(a tokenizer's file, its special tokens or None where the content has none); ValueError for another kind.

  Args:
    kind: the config's `vocabulary.name`.
    content: of a tokenizer's file, or of one that `wrap` made.
  """
  if not content.startswith(FIRST):
    return content, None
  fields = schema.parse(content, VOCABULARY_FILE, LARGE)
  if fields['kind'] != kind:
    raise ValueError('of another kind')
  values = {}
  for name, value in fields['special'].items():
    values[name] = value
    if isinstance(value, list):
      values[name] = tuple(value)
  file = base64.b64decode(fields['file'], validate=True)
  return file, Special(**values)
