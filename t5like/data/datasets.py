"""Which datasets a config needs, and in which folders they lie."""
import hashlib
import json
import pathlib
import platform
import re

from t5like import lengths
from t5like.data import shards, store

VOCABULARY = 'vocabulary'  # file name


def folder(config):
  """Returns the path of the folder for `config`: another for any key that changes the tokens."""
  data = config.data
  essence = dict(_essence(data), vocabulary=dict(config.vocabulary))
  slug = re.sub(r'[^A-Za-z0-9]+', '-', data.source).strip('-')[:40].strip('-')
  return pathlib.Path(data.directory) / f'{slug}-{sha256(essence)[:10]}'


def _essence(data):
  """What the text of a dataset depends on, for JSON."""
  keys = ('source', 'field', 'inputs', 'targets', 'split', 'validation', 'validation_fraction', 'max_documents',
          'append_eos', 'shards')
  essence = dict(format=store.FORMAT, block=shards.BLOCK, data={key: data[key] for key in keys})
  if data.source.startswith('python_'):
    essence['python'] = platform.python_version()
  return essence


def datasets(config):
  """{component name: config of its dataset}, each with the vocabulary that all of them share."""
  found = {c.name: c.config for c in lengths.components(config)}
  v = config.vocabulary
  essences = sorted({json.dumps(_essence(c.data), sort_keys=True) for c in found.values()})
  if len(essences) > 1 and not v.path and v.name != 'bytes':
    path = pathlib.Path(config.data.directory) / f'vocabulary-{sha256([essences, dict(v)])[:10]}' / VOCABULARY
    for c in found.values():
      with c.unlocked():
        c.vocabulary.path = str(path)
  return found


def sha256(value):
  """Hex digest of a value for JSON."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
