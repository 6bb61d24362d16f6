"""The prepared dataset of a run, opened."""
import pathlib
from collections.abc import Callable, Mapping

import jax

from t5like.config import stages
from t5like.config_type import Config
from t5like.errors import DataError
from t5like.prepared import datasets, manifests, prepare, store as store_lib
from t5like.vocabulary.requirements import check_vocabulary


def open_data(
    config: Config,
    say: Callable[[str], None] = print,
) -> store_lib.Store | store_lib.Stores:
  """The prepared dataset of a config, or those of a mixture; prepared now when this is the only process."""
  configs = datasets.datasets(config)
  for c in configs.values():
    datasets.fetch(c, say)
  folders = {name: datasets.folder(c) for name, c in configs.items()}
  missing = [folder for folder in folders.values() if not _is_prepared(folder)]
  if missing:
    if jax.process_count() > 1:
      raise DataError(
          f'no prepared dataset in {missing[0]}: run python main.py prepare with this config once, on one machine, '
          'before training on many.')
    prepare.prepare(config, say)
  store = _open_folders(folders)
  if 'validation' not in store.splits:
    raise DataError(
        f'{store.folder} holds no validation text, so the model cannot be validated. Delete that folder, and prepare '
        "keeps a document for it; or give data.validation files of their own, or set it to 'tail'.")
  for stage in stages.of(config):
    check_vocabulary(stage.config, store.vocabulary)
  return store


def _is_prepared(folder: pathlib.Path) -> bool:
  manifest = folder / manifests.MANIFEST
  return manifest.exists()


def _open_folders(folders: Mapping[str, pathlib.Path]) -> store_lib.Store | store_lib.Stores:
  """The one store, or the stores of a mixture; folders: by component. A folder that several share is opened once."""
  opened = {}
  for folder in folders.values():
    if folder not in opened:
      opened[folder] = store_lib.open_store(folder)
  if len(opened) == 1:
    return next(iter(opened.values()))
  by_name = {name: opened[folder] for name, folder in folders.items()}
  return store_lib.Stores(by_name)
