"""Parquet files, such as Hugging Face's shards, on disk or wherever fsspec reads (see files.py)."""
import concurrent.futures
import functools

from t5like.data import fields, files, templates
from t5like.errors import DataError


def read(name, pattern, data):
  """A record per row: the columns that `data` asks for, as plain values. Its id is PATH#ROW, from 0."""
  found, items, size = files.find(name, pattern), [], 0
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    footers = list(pool.map(_footer, (file.path for file in found)))
  for (path, *_), (columns, groups) in zip(found, footers):
    fields.require(data, columns, path, 'column')
    first = 0
    for group, (rows, length) in enumerate(groups):
      items.append((path, group, first))
      first, size = first + rows, size + length
  return dict(items=items, read=functools.partial(_read, templates.fields(data)), num_bytes=size,
              fingerprint=files.fingerprint(found))


def _footer(path):
  """([column], [(rows, bytes of text) of each row group]) of a parquet file."""
  import pyarrow.parquet
  try:
    with files.open_binary(path) as f:
      meta = pyarrow.parquet.ParquetFile(f).metadata
      groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
      return meta.schema.to_arrow_schema().names, [(g.num_rows, g.total_byte_size) for g in groups]
  except (*files.errors(path), pyarrow.ArrowException) as error:
    raise files.unreadable(path, error, 'as a parquet file') from error


def _read(columns, item):
  import pyarrow.parquet
  path, group, row = item
  try:
    with files.open_binary(path) as f:
      file = pyarrow.parquet.ParquetFile(f, page_checksum_verification=True)  # where it has checksums
      for batch in file.iter_batches(1000, [group], columns):
        for value in _rows(batch):
          yield _plain(value, f'{path} row {row}, in row group {group},'), f'{path}#{row}'
          row += 1
  except (*files.errors(path), pyarrow.ArrowException) as error:
    raise files.unreadable(path, error, f'beyond row {row}, in row group {group}') from error


def _rows(batch):
  """The rows of a batch: dicts, and errors for those that are damaged."""
  try:
    return batch.to_pylist()
  except ValueError:  # text that is not UTF-8
    return [_row(batch.slice(i, 1)) for i in range(len(batch))]


def _row(batch):
  try:
    return batch.to_pylist()[0]
  except ValueError as error:
    return error


def _plain(value, where):
  try:
    return DataError(f'{where} is damaged: {value}.') if isinstance(value, ValueError) else fields.plain(value, where)
  except DataError as error:
    return error
