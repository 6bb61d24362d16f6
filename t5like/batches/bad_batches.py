"""Files of batches that a run kept because their steps went bad."""
import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from t5like.errors import DataError
from t5like.files import plain_json, schema
from t5like.objectives.functions import Batch

PACKED = schema.Limits(size=256 << 20)
UNPACKED = 512 << 20  # bytes: far above a batch of a million tokens


def pack(batch: Batch, about: Mapping[str, Any]) -> bytes:
  """The content of a file with a batch.

  Args:
    batch: its arrays.
    about: facts about the batch, for JSON.
  """
  arrays: dict[str, Any] = dict(_flatten(batch))
  arrays['about'] = plain_json.dumps(about)
  content = io.BytesIO()
  np.savez_compressed(content, **arrays)
  return content.getvalue()


def _flatten(tree: Batch, path: str = '') -> Iterator[tuple[str, np.ndarray]]:
  """Pairs ('outer/inner', array)."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flatten(value, f'{path}{key}/')
    else:
      yield path + key, value


def read(path: str) -> tuple[Batch, dict[str, Any]]:
  """(batch, about) of such a file, as `pack` had them. DataError for any other file."""
  try:
    content = schema.content(epath.Path(path), PACKED)
    arrays = _unpack(content)
    text = str(arrays.pop('about'))
    schema_of_about = schema.Object()
    values = schema.parse(text, schema_of_about, schema.LINE)
    about = {}
    for key, value in values.items():
      about[key] = plain_json.number(value)
    return _unflatten(arrays), about
  except Exception as error:  # zlib, zipfile and numpy each have their own
    raise DataError(f'--batch={path} is not a batch that a run kept ({type(error).__name__}: {error}). They are in '
                    'WORKDIR/bad_steps.') from error


def _unpack(content: bytes) -> dict[str, np.ndarray]:
  """The arrays of a .npz file. ValueError for one that is too large when unpacked."""
  packed = io.BytesIO(content)
  members = zipfile.ZipFile(packed).infolist()
  unpacked = sum(member.file_size for member in members)
  if unpacked > UNPACKED:
    raise ValueError(f'it unpacks to {unpacked:,} bytes, and at most {UNPACKED:,} are read')
  with np.load(packed, allow_pickle=False) as file:
    return {key: file[key] for key in file}


def _unflatten(arrays: Mapping[str, np.ndarray]) -> Batch:
  batch: Batch = {}
  for key, array in arrays.items():
    *outer, name = key.split('/')
    place = batch
    for part in outer:
      place = place.setdefault(part, {})
    place[name] = array
  return batch
