"""Which datasets a config needs, and in which folders they lie."""
import hashlib
import json
import pathlib
import platform
import re

from t5like import lengths, paths
from t5like.data import manifests, mirror, shards
from t5like.data.parts import VOCABULARY

CACHE = '~/.cache/t5like'


def folder(config):
  """Returns the path of the folder for `config` on this machine: another for any key that changes tokens."""
  directory = paths.expand(config.data.directory)
  if mirror.is_remote(directory):
    return pathlib.Path(paths.expand(config.data.cache or CACHE)) / _name(config)
  return pathlib.Path(directory) / _name(config)


def remote(config):
  """Returns the URL of the folder, '' if data.directory is on this machine."""
  directory = paths.expand(config.data.directory)
  return f'{directory.rstrip("/")}/{_name(config)}' if mirror.is_remote(directory) else ''


def fetch(config, say=print):
  """Copies a dataset whose data.directory is remote to this machine, if it is prepared there."""
  url, target = remote(config), folder(config)
  if not url or (target / manifests.MANIFEST).exists() or not mirror.is_file(f'{url}/{manifests.MANIFEST}'):
    return
  target.mkdir(parents=True, exist_ok=True)
  with mirror.alone(target, say):
    manifest = manifests.load(f'{url}/{manifests.MANIFEST}')
    say(f'Copying {url} to {target}.')
    mirror.pull(url, target, {**manifests.sizes(manifest), manifests.MANIFEST: None})


def _name(config):
  data, spec = config.data, _vocabulary(config)
  # A vocabulary that prepare makes for a mixture lies beside its datasets, wherever that is.
  spec['path'] = spec['path'].removeprefix(f'{data.directory.rstrip("/")}/')
  essence = dict(_essence(data), vocabulary=spec)
  slug = re.sub(r'[^A-Za-z0-9]+', '-', data.source).strip('-')[:40].strip('-')
  return f'{slug}-{sha256(essence)[:10]}'


def _vocabulary(config):
  """The vocabulary section for JSON; without keys that older versions did not have, where they have their defaults."""
  spec = config.vocabulary.to_dict()
  if not spec.get('special'):
    spec.pop('special', None)
  return spec


def _essence(data):
  """What the text of a dataset depends on, for JSON."""
  keys = ('source', 'field', 'inputs', 'targets', 'split', 'validation', 'validation_fraction', 'max_documents',
          'append_eos', 'shards', 'max_document_tokens', 'overlong', 'deduplicate')
  essence = dict(format=manifests.FORMAT, block=shards.BLOCK, data={key: data[key] for key in keys})
  if data.source.startswith('python_'):
    essence['python'] = platform.python_version()
  return essence


def datasets(config):
  """{component name: config of its dataset}, each with the vocabulary that all of them share."""
  found = {c.name: c.config for c in lengths.components(config)}
  v = config.vocabulary
  essences = sorted({json.dumps(_essence(c.data), sort_keys=True, allow_nan=False) for c in found.values()})
  if len(essences) > 1 and not v.path and v.name != 'bytes':
    path = f'{config.data.directory.rstrip("/")}/vocabulary-{sha256([essences, _vocabulary(config)])[:10]}/{VOCABULARY}'
    for c in found.values():
      with c.unlocked():
        c.vocabulary.path = path
  return found


def sha256(value):
  """Hex digest of a value for JSON."""
  return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
