"""A TFDS dataset that every machine can make without a network: the text of this Python's standard library."""
import contextlib
import hashlib
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from t5like.errors import DataError
from t5like.files import mirror

NAME = 'python_docs'
VERSION = '.'.join(map(str, sys.version_info[:3]))  # text differs from one Python to the next
FIELDS = dict(  # of the records of each config
    documents=['text', 'id'],
    functions=['name', 'kind', 'source', 'docstring', 'text'],
)
HELD_OUT = 50  # one module in HELD_OUT is for validation
COMPLETE = 'dataset_info.json'  # written last: a folder that has it is complete

Fields = dict[str, Any]
Record = tuple[Mapping[str, Any], str]  # fields, and the id
Read = Callable[[], Iterable[Record]]


class PythonDocs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Modules are wholly in train or in validation."""
  VERSION = tfds.core.Version(VERSION)
  BUILDER_CONFIGS = [
      tfds.core.BuilderConfig(
          name='documents',
          description="Modules, cut before definitions; pydoc's topics.",
      ),
      tfds.core.BuilderConfig(
          name='functions',
          description='Functions and the first line of their docstrings.',
      ),
  ]

  def __init__(self, *, read: Read, **keys: Any):
    """`read` yields pairs (dict, id), the records; `keys`: of the class above."""
    self._read = read
    super().__init__(**keys)

  def _fields(self) -> list[str]:
    config = self.builder_config
    assert config is not None  # TFDS sets it where there are BUILDER_CONFIGS
    return FIELDS[config.name]

  def _info(self) -> tfds.core.DatasetInfo:
    features = {field: tfds.features.Text() for field in self._fields()}
    return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        license='PSF-2.0',
        description='Text of the standard library of Python, for pre-training.',
        homepage='https://docs.python.org/3/library/',
    )

  def _split_generators(self, manager):
    records = list(self._read())
    return dict(
        train=self._generate_examples(records, 'train'),
        validation=self._generate_examples(records, 'validation'),
    )

  def _generate_examples(
      self,
      records: Sequence[Record],
      split: str,
  ) -> Iterator[tuple[str, Fields]]:
    names = self._fields()
    for record, name in records:
      if split_of(name) == split:
        yield name, {field: record.get(field, name) for field in names}


def split_of(name: str) -> str:
  """Returns the split of a record by its id: MODULE#NUMBER or MODULE:LINE."""
  module, *_ = re.split('[#:]', name)
  digest = hashlib.sha256(module.encode()).digest()
  number = int.from_bytes(digest[:8], 'big')
  if number % HELD_OUT:
    return 'train'
  return 'validation'


def make(config: str, root: str, read: Read) -> None:
  """Makes the dataset in a folder, completely or not at all, unless it is already there.

  Args:
    config: one of FIELDS.
    root: folder or URL of the datasets.
    read: yields pairs (dict, id), the records.

  Raises:
    DataError: it cannot be written.
  """
  try:
    if mirror.is_remote(root):
      _make_remote(config, root, read)
    else:
      _make(config, pathlib.Path(root), read)
  except OSError as error:
    raise DataError(f"data.source='tfds:{NAME}/{config}' could not be written to {root}: {error}. data.tfds_dir sets "
                    'the folder.') from error


def _make_remote(config: str, root: str, read: Read) -> None:
  url = f'{root.rstrip("/")}/{NAME}/{config}/{VERSION}'
  with tempfile.TemporaryDirectory() as folder:
    made = _make(config, pathlib.Path(folder), read)
    names = sorted(os.listdir(made), key=lambda name: name == COMPLETE)  # COMPLETE last
    mirror.push(made, url, names)


def _make(config: str, root: pathlib.Path, read: Read) -> pathlib.Path:
  folder = root / NAME / config
  folder.mkdir(parents=True, exist_ok=True)
  with mirror.alone(folder, _say):
    made = folder / VERSION
    if not (made / COMPLETE).exists():
      with contextlib.redirect_stdout(sys.stderr):  # TFDS announces a download, although there is none
        builder = PythonDocs(
            read=read,
            config=config,
            data_dir=root,
            file_format='array_record',
        )
        builder.download_and_prepare()
  return made


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
