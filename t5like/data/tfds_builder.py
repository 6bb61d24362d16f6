"""A TFDS dataset that every machine can make without a network: the text of this Python's standard library."""
import contextlib
import hashlib
import os
import pathlib
import re
import sys
import tempfile

import tensorflow_datasets as tfds

from t5like.data import mirror
from t5like.errors import DataError

NAME = 'python_docs'
VERSION = '.'.join(map(str, sys.version_info[:3]))  # text differs from one Python to the next
FIELDS = dict(documents=['text', 'id'], functions=['name', 'kind', 'source', 'docstring', 'text'])
HELD_OUT = 50  # one module in so many is for validation


class PythonDocs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """`read`, which yields pairs (dict, id), gives the text; modules are wholly in train or in validation."""
  VERSION = tfds.core.Version(VERSION)
  BUILDER_CONFIGS = [
      tfds.core.BuilderConfig(name='documents', description='Modules, cut before definitions; pydoc\'s topics.'),
      tfds.core.BuilderConfig(name='functions', description='Functions and the first line of their docstrings.')]

  def __init__(self, *, read, **keys):
    self._read = read
    super().__init__(**keys)

  def _info(self):
    features = {field: tfds.features.Text() for field in FIELDS[self.builder_config.name]}
    return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features), license='PSF-2.0',
        description='Text of the standard library of Python, for pre-training.',
        homepage='https://docs.python.org/3/library/')

  def _split_generators(self, manager):
    records = list(self._read())
    return {split: self._generate_examples(records, split) for split in ('train', 'validation')}

  def _generate_examples(self, records, split):
    fields = FIELDS[self.builder_config.name]
    for record, name in records:
      if split_of(name) == split:
        yield name, {field: record.get(field, name) for field in fields}


def split_of(name):
  """Returns the split of a record by its id: MODULE#NUMBER or MODULE:LINE."""
  module = re.split('[#:]', name)[0]
  number = int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], 'big')
  return 'train' if number % HELD_OUT else 'validation'


def make(config, root, read):
  """Leaves the dataset `config` in the folder or URL `root` unless it is there, whole or not at all. DataError."""
  try:
    if not mirror.is_remote(root):
      _make(config, pathlib.Path(root), read)
      return
    url = f'{root.rstrip("/")}/{NAME}/{config}/{VERSION}'
    with tempfile.TemporaryDirectory() as folder:
      made = _make(config, pathlib.Path(folder), read)
      names = sorted(os.listdir(made), key=lambda name: name == 'dataset_info.json')  # last: it marks completeness
      mirror.push(made, url, names)
  except OSError as error:
    raise DataError(f"data.source='tfds:{NAME}/{config}' could not be written to {root}: {error}. data.tfds_dir sets "
                    'the folder.') from error


def _make(config, root, read):
  folder = root / NAME / config
  folder.mkdir(parents=True, exist_ok=True)
  with mirror.alone(folder, lambda line: print(line, file=sys.stderr, flush=True)):
    made = folder / VERSION
    if not (made / 'dataset_info.json').exists():
      with contextlib.redirect_stdout(sys.stderr):  # TFDS speaks of a download, which there is none of
        builder = PythonDocs(read=read, config=config, data_dir=root, file_format='array_record')
        builder.download_and_prepare()
  return made
