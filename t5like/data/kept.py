"""Files of batches that a run kept, because their steps went bad."""
import io

import numpy as np
from etils import epath

from t5like import plain_json, schema
from t5like.errors import DataError


def pack(batch, about):
  """The content of a file with a batch (a dict of numpy arrays and dicts) and what is to be known of it (JSON)."""
  content = io.BytesIO()
  np.savez_compressed(content, about=plain_json.dumps(about), **dict(_flat(batch)))
  return content.getvalue()


def _flat(tree, path=''):
  for key, x in tree.items():
    yield from _flat(x, f'{path}{key}/') if isinstance(x, dict) else [(path + key, x)]


def read(path):
  """(batch, about) of such a file. DataError when it is none."""
  try:
    with np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False) as found:
      content = {key: found[key] for key in found}
    values = schema.parse(str(content.pop('about')), schema.Object(), schema.LINE)
    about = {key: plain_json.number(value) for key, value in values.items()}
    batch = {}
    for key, x in content.items():
      *outer, name = key.split('/')
      place = batch
      for part in outer:
        place = place.setdefault(part, {})
      place[name] = x
    return batch, about
  except Exception as e:  # zlib, zipfile and numpy each have their own
    raise DataError(f'--batch={path} is not a batch that a run kept ({type(e).__name__}: {e}). They are in '
                    'WORKDIR/bad_steps.') from e
