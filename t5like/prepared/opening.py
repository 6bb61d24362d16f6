"""The prepared dataset of a run, opened."""
from collections.abc import Callable

import jax

from t5like.config_type import Config
from t5like.errors import DataError
from t5like.prepared import datasets, prepare, store as store_lib
from t5like.vocabulary.requirements import check_vocabulary


def open_data(config: Config, say: Callable[[str], None] = print) -> store_lib.Store | store_lib.Stores:
  """The prepared dataset of a config, or those of a mixture; prepared now when this is the only process."""
  configs = datasets.datasets(config)
  for c in configs.values():
    datasets.fetch(c, say)
  folders = {name: datasets.folder(c) for name, c in configs.items()}
  missing = [folder for folder in folders.values() if not (folder / 'manifest.json').exists()]
  if missing:
    if jax.process_count() > 1:
      raise DataError(f'no prepared dataset in {missing[0]}: run python main.py prepare with this '
                      'config once, on one machine, before training on many.')
    prepare.prepare(config, say)
  opened = {folder: store_lib.open_store(folder) for folder in folders.values()}
  if len(opened) == 1:
    store = next(iter(opened.values()))
  else:
    store = store_lib.Stores({name: opened[folder] for name, folder in folders.items()})
  if 'validation' not in store.splits:
    raise DataError(f'{store.folder} holds no validation text, so nothing could be said of the model. Delete that '
                    'folder, and prepare keeps a document for it; or give data.validation files of their own, or '
                    "set it to 'tail'.")
  check_vocabulary(config, store.vocabulary)
  return store
