"""Parquet files, such as Hugging Face's shards, on disk or wherever fsspec reads (see files.py)."""
import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from t5like.config import templates
from t5like.config_type import Config
from t5like.errors import DataError
from t5like.sources import fields, files, reading

Record = dict[str, Any]

ROWS = 1000  # read together
THREADS = 16  # that read footers


@dataclasses.dataclass(frozen=True)
class RowGroup:
  rows: int
  num_bytes: int  # of uncompressed text


@dataclasses.dataclass(frozen=True)
class Footer:
  columns: list[str]
  groups: list[RowGroup]


def read(name: str, pattern: str, data: Config) -> files.Content:
  """A record per row, with the columns that `data` reads, as plain values.

  The id of a record is PATH#ROW, from 0.

  Args:
    name: the config's `data.source`.
    pattern: a glob.
    data: the config's section.

  Raises:
    DataError: there is no such file, or one has no such column or cannot be read.
  """
  matches = files.find(name, pattern)
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    footers = list(pool.map(_footer, [file.path for file in matches]))
  items = []
  size = 0
  for file, footer in zip(matches, footers):
    fields.require(data, footer.columns, file.path, 'column')
    first_row = 0
    for number, group in enumerate(footer.groups):
      items.append((file.path, number, first_row))
      first_row += group.rows
      size += group.num_bytes
  read_group = functools.partial(_read, templates.fields(data))
  return files.Content(items, read_group, size, files.fingerprint(matches))


def _footer(path: str) -> Footer:
  import pyarrow.parquet
  try:
    with reading.open_binary(path) as file:
      meta = pyarrow.parquet.ParquetFile(file).metadata
      columns = meta.schema.to_arrow_schema().names
      groups = []
      for number in range(meta.num_row_groups):
        group = meta.row_group(number)
        groups.append(RowGroup(group.num_rows, group.total_byte_size))
      return Footer(columns, groups)
  except (*reading.errors(path), pyarrow.ArrowException) as error:
    raise reading.unreadable(path, error, 'as a parquet file') from error


def _read(
    columns: Sequence[str],
    item: tuple[str, int, int],
) -> Iterator[tuple[Record | DataError, str]]:
  """Records and ids of a row group; item: (path, number of the group, number of its first row)."""
  import pyarrow.parquet
  path, group, row = item
  try:
    with reading.open_binary(path) as file:
      reader = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)  # where it has checksums
      for batch in reader.iter_batches(ROWS, [group], columns):
        for value in _rows(batch):
          yield _plain(value, f'{path} row {row}, in row group {group},'), f'{path}#{row}'
          row += 1
  except (*reading.errors(path), pyarrow.ArrowException) as error:
    raise reading.unreadable(path, error, f'beyond row {row}, in row group {group}') from error


def _rows(batch: Any) -> list[Record | ValueError]:
  """The rows of a pyarrow.RecordBatch: dicts, and errors for those that are damaged."""
  try:
    return batch.to_pylist()
  except ValueError:  # text that is not UTF-8
    return [_row(batch.slice(i, 1)) for i in range(len(batch))]


def _row(batch: Any) -> Record | ValueError:
  try:
    return batch.to_pylist()[0]
  except ValueError as error:
    return error


def _plain(value: Record | ValueError, where: str) -> Record | DataError:
  if isinstance(value, ValueError):
    return DataError(f'{where} is damaged: {value}.')
  try:
    return fields.plain(value, where)
  except DataError as error:
    return error
