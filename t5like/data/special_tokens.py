"""Special tokens of tokenizers that other programs made: which ids begin and end texts, pad, mask and so on.

They are what the tokenizer's folder says, in the order in which transformers 5.23 looks: the config first (key
vocabulary.special), then tokenizer_config.json and the older special_tokens_map.json, then the defaults of the class of
tokenizer that the folder names, then the tokenizer's own file, then generation_config.json and config.json. A token is
never taken for special because of its name: an ordinary piece of the vocabulary may be called </s>. The default of a
class counts only where the tokenizer's file marks that token as special.

What was found is kept in the vocabulary file, beside the tokenizer's own (`wrap`), so that it goes wherever that goes.
"""
import base64
import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from t5like import plain_json, schema
from t5like.errors import ConfigError

ROLES = ('bos', 'eos', 'pad', 'unk', 'mask', 'cls', 'sep')  # named by tokenizers
KEYS = (*ROLES, 'start')  # of config.vocabulary.special
SENTINEL = re.compile('\u2581?<extra_id_([0-9]+)>')  # mT5 has them as pieces that begin with a space
FIRST = b'{"t5like": "vocabulary"'  # how a vocabulary file with special tokens begins
# Tokenizers have many pieces and merges: Gemma's, the largest we know, 262,144 and 514,906 in 33 MB.
LARGE = schema.Limits(size=256 << 20, values=5_000_000, depth=100)

# What classes of tokenizers of transformers 5.23 take for special when the folder names no token.
LLAMA = dict(bos='<s>', eos='</s>', unk='<unk>')
T5 = dict(eos='</s>', unk='<unk>', pad='<pad>')
GPT2 = dict(bos='<|endoftext|>', eos='<|endoftext|>', unk='<|endoftext|>')
CLASSES = dict(
    LlamaTokenizer=LLAMA, T5Tokenizer=T5, MT5Tokenizer=T5, ByT5Tokenizer=T5, GPT2Tokenizer=GPT2,
    GPTNeoXTokenizer=dict(GPT2, pad='<|padding|>'), Qwen2Tokenizer=dict(eos='<|endoftext|>', pad='<|endoftext|>'),
    BertTokenizer=dict(unk='[UNK]', sep='[SEP]', pad='[PAD]', cls='[CLS]', mask='[MASK]'),
    RobertaTokenizer=dict(bos='<s>', eos='</s>', sep='</s>', cls='<s>', unk='<unk>', pad='<pad>', mask='<mask>'))
CLASS_OF = dict(llama='LlamaTokenizer', t5='T5Tokenizer', mt5='T5Tokenizer', umt5='T5Tokenizer', gpt2='GPT2Tokenizer',
                gpt_neox='GPTNeoXTokenizer', bert='BertTokenizer', roberta='RobertaTokenizer', qwen2='Qwen2Tokenizer')
# Classes that build what they put around texts anew, whatever tokenizer.json says: roles before and after a text.
AROUND = dict(GPTNeoXTokenizer=((), ()), BertTokenizer=(('cls',), ('sep',)), RobertaTokenizer=(('cls',), ('sep',)),
              T5Tokenizer=((), ('eos',)), MT5Tokenizer=((), ('eos',)), ByT5Tokenizer=((), ('eos',)))

TOKEN = schema.Maybe(schema.Either((schema.Text(4096), schema.Object(dict(content=schema.Text(4096))))))
TOKEN_LIST = schema.Maybe(schema.Either((
    schema.List(schema.Either((schema.Text(4096), schema.Object())), most=100_000), schema.Object())))
ID = schema.Maybe(schema.Either((schema.Whole(-1, 1 << 31), schema.List(schema.Whole(-1, 1 << 31), most=4096))))
TOKENS = {f'{role}_token': TOKEN for role in ROLES}
IDS = {f'{role}_token_id': ID for role in ('bos', 'eos', 'pad', 'decoder_start')}
CLASS = schema.Maybe(schema.Text(200))
FOUND = schema.Maybe(schema.Whole(0, 1 << 31))
FOUND_LIST = schema.List(schema.Whole(0, 1 << 31), most=1_000_000)
KEPT = schema.Object(  # in a vocabulary file
    dict(dict.fromkeys(KEYS, FOUND), stops=FOUND_LIST, suppress=schema.Maybe(FOUND_LIST), before=FOUND_LIST,
         after=FOUND_LIST), needs=KEYS, rest=None)
FILES = {  # read beside a tokenizer, each with what it may hold
    'tokenizer_config.json': schema.Object(dict(
        TOKENS, tokenizer_class=CLASS, add_bos_token=schema.Maybe(schema.Flag()),
        add_eos_token=schema.Maybe(schema.Flag()), additional_special_tokens=TOKEN_LIST,
        extra_special_tokens=TOKEN_LIST, extra_ids=schema.Maybe(schema.Whole(0, 100_000)),
        added_tokens_decoder=schema.Maybe(schema.Object(rest=schema.Object(
            dict(content=schema.Text(4096)), needs=('content',)))))),
    'added_tokens.json': schema.Object(rest=schema.Whole(0, 1 << 31)),
    'special_tokens_map.json': schema.Object(TOKENS),
    'generation_config.json': schema.Object(dict(IDS, suppress_tokens=schema.Maybe(
        schema.List(schema.Whole(-1, 1 << 31))))),
    'config.json': schema.Object(dict(IDS, tokenizer_class=CLASS, model_type=schema.Maybe(schema.Text(200))))}


@dataclasses.dataclass(frozen=True)
class Special:
  """Ids of special tokens; None: there is none.

  bos: begins a text of a decoder    eos: ends a document    start: begins the decoder's side of an encoder-decoder
  stops: where generated text ends   suppress: what is never generated; None: padding and the unknown token
  before, after: what the tokenizer puts around a text
  """
  bos: int | None = None
  eos: int | None = None
  pad: int | None = None
  unk: int | None = None
  mask: int | None = None
  cls: int | None = None
  sep: int | None = None
  start: int | None = None
  stops: tuple = ()
  suppress: tuple | None = None
  before: tuple = ()
  after: tuple = ()


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """What a tokenizer's own file says.

  ids: {token: id}
  special, added: texts of the tokens that are marked as special, and of those that were added to the model's own
  own: {role: id} of those that the file gives a role
  before, after: ids that it puts around a text, None where the file does not say
  byte_level: whether its pieces are written in bytes
  """
  ids: Mapping[str, int]
  special: Collection[str]
  own: Mapping[str, int] = dataclasses.field(default_factory=dict)
  before: tuple | None = None
  after: tuple | None = None
  byte_level: bool = False
  added: Collection[str] = ()


def parse_files(contents: Mapping[str, bytes], folder: Any) -> dict[str, dict]:
  """The values of those of FILES that a folder has; ConfigError where one is damaged or of another shape."""
  values = {}
  for name, content in contents.items():
    try:
      values[name] = schema.parse(content, FILES[name], LARGE)
    except schema.Invalid as error:
      raise ConfigError(schema.sentence(f'{folder}/{name}', error)) from error
  return values


def read(tokenizer: Tokenizer, files: Mapping[str, dict], chosen: Mapping[str, Any], path: Any) -> Special:
  """The special tokens of a tokenizer.

  Args:
    tokenizer: what its own file says.
    files: values of those of FILES that lie beside it.
    chosen: config.vocabulary.special, which comes first: {role: text of a token, its id, or '' for none}.
    path: of the tokenizer, for errors.

  Returns:
    Special. ConfigError for a token that the vocabulary does not have.
  """
  kind = class_of(tokenizer, files)
  named = _named(files)
  size = max(tokenizer.ids.values(), default=-1) + 1
  model = {role: _model_ids(files, f'{role}_token_id', size) for role in ('bos', 'eos', 'pad', 'decoder_start')}
  found = {role: _role(role, tokenizer, named, CLASSES.get(kind, {}), model, path) for role in ROLES}
  found['start'] = next(iter(model['decoder_start']), None)
  found.update({role: _chosen(role, value, tokenizer.ids, size, path) for role, value in chosen.items()})
  if 'eos' not in chosen and found['eos'] is None:
    found['eos'] = found['sep']  # what ends a row of BERT's ends its documents too
  before, after = _around(kind, tokenizer, found, files.get('tokenizer_config.json', {}))
  if 'bos' not in chosen and found['bos'] is None and len(before) == 1 and before[0] != found['cls']:
    found['bos'] = before[0]
  stops = model['eos'] or (() if found['eos'] is None else (found['eos'],))
  if 'eos' in chosen:
    stops = () if found['eos'] is None else (found['eos'],)
  return Special(**found, stops=stops, suppress=_suppressed(files), before=before, after=after)


def class_of(tokenizer: Tokenizer, files: Mapping[str, dict]) -> str:
  """The class that transformers loads a folder's tokenizer with, '' for its plain one, which knows no names."""
  model_config, settings = files.get('config.json', {}), files.get('tokenizer_config.json', {})
  named = settings.get('tokenizer_class') or model_config.get('tokenizer_class') or ''
  kind = named.removesuffix('Fast') or CLASS_OF.get(model_config.get('model_type'), '')
  # Llama's class is for SentencePiece; folders that name it beside pieces of bytes are read without it.
  return '' if kind == 'LlamaTokenizer' and tokenizer.byte_level else kind


def _named(files: Mapping[str, dict]) -> dict[str, str | None]:
  """{role: text} of the tokens that the tokenizer's settings name; None: there is none of that role."""
  settings = files.get('tokenizer_config.json', {})
  sources = [settings]
  if settings.get('added_tokens_decoder') is None:
    sources.append(files.get('special_tokens_map.json', {}))
  named = {}
  for source in sources:
    for role in ROLES:
      if f'{role}_token' in source:
        token = source[f'{role}_token']
        named[role] = token.get('content') if isinstance(token, dict) else token
  return named


def _model_ids(files: Mapping[str, dict], key: str, size: int) -> tuple[int, ...]:
  """Ids that generation_config.json, or else config.json, gives under a key; those beyond the vocabulary are none."""
  for name in ('generation_config.json', 'config.json'):
    value = files.get(name, {}).get(key)
    ids = tuple(value) if isinstance(value, list) else () if value is None else (value,)
    ids = tuple(i for i in ids if 0 <= i < size)
    if ids:
      return ids
  return ()


def _role(role: str, tokenizer: Tokenizer, named: Mapping, defaults: Mapping, model: Mapping, path: Any) -> int | None:
  text = named.get(role)
  if text and text in tokenizer.ids:
    return tokenizer.ids[text]
  if text and role not in ('pad', 'unk'):
    raise ConfigError(f'The settings beside {path} name {role}_token={text!r}, which that tokenizer does not have. '
                      f"Correct tokenizer_config.json, or say which token it is: {flag(role)}'...'.")
  if role not in named and defaults.get(role) in tokenizer.special:
    return tokenizer.ids[defaults[role]]
  if role in tokenizer.own:
    return tokenizer.own[role]
  ids = model.get(role, ())
  return ids[0] if len(ids) == 1 else None


def _chosen(role: str, value: Any, ids: Mapping[str, int], size: int, path: Any) -> int | None:
  if value == '':
    return None
  if isinstance(value, str) and value in ids:
    return ids[value]
  if isinstance(value, int) and 0 <= value < size:
    return value
  raise ConfigError(f'vocabulary.special.{role}={value!r}: {path} has no such token. Give the text of one of its '
                    f"{size:,} tokens, an id below that, or '' where there is none.")


def _around(kind: str, tokenizer: Tokenizer, found: Mapping, settings: Mapping) -> tuple[tuple, tuple]:
  if kind not in AROUND and tokenizer.before is not None:
    return tokenizer.before, tokenizer.after
  asked = tuple((role,) if settings.get(f'add_{role}_token') else () for role in ('bos', 'eos'))
  return tuple(tuple(found[role] for role in roles if found[role] is not None) for roles in AROUND.get(kind, asked))


def _suppressed(files: Mapping[str, dict]) -> tuple | None:
  """A folder with a model says itself what it never generates; beside a tokenizer alone nothing is known of that."""
  if not files.keys() & {'generation_config.json', 'config.json'}:
    return None
  return tuple(i for i in files.get('generation_config.json', {}).get('suppress_tokens') or () if i >= 0)


def flag(role: str) -> str:
  """The flag that says which token has a role, up to its value."""
  return f'--config.vocabulary.special.{role}='


def sentinels(ids: Mapping[str, int], special: Collection[str] = ()) -> list[int]:
  """Ids of <extra_id_0>, <extra_id_1>, .. as far as there are all of them; of two forms the one marked special."""
  by_number = {}
  for text in sorted(ids, key=lambda text: text in special):
    if match := SENTINEL.fullmatch(text):
      by_number[int(match[1])] = ids[text]
  found = []
  while len(found) in by_number:
    found.append(by_number[len(found)])
  return found


def of(vocabulary: Any) -> Special:
  """The special tokens of a vocabulary of any kind."""
  v = vocabulary
  return Special(bos=v.bos_id, eos=v.eos_id, pad=v.pad_id, unk=v.unk_id, mask=v.mask_id, cls=v.cls_id, sep=v.sep_id,
                 start=v.start_id, stops=tuple(v.stop_ids), suppress=tuple(v.suppressed), before=tuple(v.before),
                 after=tuple(v.after))


# --- Files ----------------------------------------------------------------------------------------


def wrap(kind: str, special: Special, file: bytes) -> bytes:
  """The content of a vocabulary file: a tokenizer's file, as it is, with its special tokens."""
  fields = dict(t5like='vocabulary', kind=kind, special=dataclasses.asdict(special),
                file=base64.b64encode(file).decode())
  return plain_json.dumps(fields).encode()


def unwrap(kind: str, content: bytes) -> tuple[bytes, Special | None]:
  """(a tokenizer's file, its special tokens or None where it holds none); ValueError for a file of another kind."""
  if not content.startswith(FIRST):
    return content, None
  fields = schema.parse(content, schema.Object(dict(special=KEPT), needs=('kind', 'special', 'file')), LARGE)
  if fields['kind'] != kind:
    raise ValueError('of another kind')
  values = fields['special']
  tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
  return base64.b64decode(fields['file'], validate=True), Special(**dict(values, **tuples))
