"""Which datasets a config needs, and which folders hold them."""
import hashlib
import json
import pathlib
import platform
import re
from collections.abc import Callable
from typing import Any

from t5like.config import stages
from t5like.config_type import Config
from t5like.files import mirror, paths
from t5like.objectives import lengths
from t5like.prepared import manifests, shards
from t5like.prepared.parts import VOCABULARY

CACHE = '~/.cache/t5like'
# Keys of config.data that change the tokens of a dataset.
ESSENTIAL = (
    'source',
    'field',
    'inputs',
    'targets',
    'split',
    'validation',
    'validation_fraction',
    'max_documents',
    'append_eos',
    'shards',
    'max_document_tokens',
    'overlong',
    'deduplicate',
)
SLUG = 40  # most characters of a folder's name that come from data.source
DIGITS = 10  # of a digest in the name of a folder


def folder(config: Config) -> pathlib.Path:
  """The folder for `config` on this machine: another one for any key that changes tokens."""
  directory = paths.expand(config.data.directory)
  if mirror.is_remote(directory):
    directory = paths.expand(config.data.cache or CACHE)
  return pathlib.Path(directory) / _name(config)


def remote(config: Config) -> str:
  """The URL of the folder, '' if data.directory is on this machine."""
  directory = paths.expand(config.data.directory)
  if not mirror.is_remote(directory):
    return ''
  parent = directory.rstrip('/')
  return f'{parent}/{_name(config)}'


def fetch(config: Config, say: Callable[[str], None] = print) -> None:
  """Copies a dataset whose data.directory is remote to this machine, if it is prepared there.

  Args:
    config: of the dataset.
    say: called with a line of text before copying.

  Raises:
    DataError: the remote dataset is damaged, or the store fails.
  """
  url = remote(config)
  target = folder(config)
  if not url or (target / manifests.MANIFEST).exists():
    return
  if not mirror.is_file(f'{url}/{manifests.MANIFEST}'):
    return
  target.mkdir(parents=True, exist_ok=True)
  with mirror.alone(target, say):
    manifest = manifests.load(f'{url}/{manifests.MANIFEST}')
    if manifest is None:  # deleted meanwhile
      return
    say(f'Copying {url} to {target}.')
    files: dict[str, int | None] = {**manifests.sizes(manifest), manifests.MANIFEST: None}
    mirror.pull(url, target, files)


def _name(config: Config) -> str:
  spec = _vocabulary(config)
  # A vocabulary that prepare makes for a mixture lies beside its datasets, wherever that is.
  directory = config.data.directory.rstrip('/')
  spec['path'] = spec['path'].removeprefix(f'{directory}/')
  essence = dict(_essence(config.data), vocabulary=spec)
  words = re.sub(r'[^A-Za-z0-9]+', '-', config.data.source).strip('-')
  slug = words[:SLUG].strip('-')
  digest = sha256(essence)[:DIGITS]
  return f'{slug}-{digest}'


def _vocabulary(config: Config) -> dict[str, Any]:
  """The vocabulary section for JSON; without keys that older versions did not have, where they have their defaults."""
  spec = config.vocabulary.to_dict()
  if not spec.get('special'):
    spec.pop('special', None)
  return spec


def _essence(data: Config) -> dict[str, Any]:
  """All that the text of a dataset depends on, for JSON."""
  values = {key: data[key] for key in ESSENTIAL}
  essence: dict[str, Any] = dict(
      format=manifests.FORMAT,
      block=shards.BLOCK,
      data=values,
  )
  if data.source.startswith('python_'):
    essence['python'] = platform.python_version()
  return essence


def datasets(config: Config) -> dict[str, Config]:
  """{component name: config of its dataset} of all stages, each with the vocabulary that all of them share."""
  configs: dict[str, Config] = {}
  for stage in stages.of(config):
    for component in lengths.components(stage.config):
      configs.setdefault(component.name, component.config)
  distinct = {_to_json(_essence(c.data)) for c in configs.values()}
  spec = config.vocabulary
  is_shared = len(distinct) > 1 and not spec.path and spec.name != 'bytes'
  if is_shared:
    essence = [sorted(distinct), _vocabulary(config)]
    digest = sha256(essence)[:DIGITS]
    directory = config.data.directory.rstrip('/')
    path = f'{directory}/vocabulary-{digest}/{VOCABULARY}'
    for c in configs.values():
      with c.unlocked():
        c.vocabulary.path = path
  return configs


def _to_json(value: Any) -> str:
  return json.dumps(value, sort_keys=True, allow_nan=False)


def sha256(value: Any) -> str:
  """Hex digest of a value for JSON."""
  content = _to_json(value).encode()
  return hashlib.sha256(content).hexdigest()
