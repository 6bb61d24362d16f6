"""The kind of a file, by its name and first bytes: text in UTF-8 or with a mark of UTF-16 or UTF-32, or not text.

A file that is not text is refused with its format: advice to convert it would make rubbish that trains.
"""
import codecs

from t5like.errors import DataError

HEAD = 1 << 16  # bytes of a file that are examined
# Longest first, for UTF-32's mark begins with UTF-16's.
MARKS = ((codecs.BOM_UTF32_LE, 'utf-32-le'), (codecs.BOM_UTF32_BE, 'utf-32-be'), (codecs.BOM_UTF8, 'utf-8'),
         (codecs.BOM_UTF16_LE, 'utf-16-le'), (codecs.BOM_UTF16_BE, 'utf-16-be'))

UNPACK = 'Unpack it, and give its files'
EXPORT = 'Save its text as plain text (UTF-8), and give that file'
PACK = 'Pack it as .gz, .bz2, .xz or .zst'
CONVERT_RECORDS = 'Convert it to Parquet or JSON lines'
NAME_IT = 'Let its name end in '
LEAVE_OUT = 'Leave it out of the glob'
PARQUET = "Read it with data.source='parquet:GLOB'"
# No encoding is named: with a wrong one the conversion also succeeds, and trains.
CONVERT = ('if it is text, find out its encoding (file -i guesses, open it to see) and convert it: '
           'iconv -f ENCODING -t UTF-8.')
# Endings of names of files that are never text: the kind of file, and a remedy.
ENDINGS = {
    '.zip .7z .rar .tar .tgz .tbz2 .txz .tar.gz .tar.bz2 .tar.xz .tar.zst .jar .whl': ('an archive of files', UNPACK),
    '.docx .odt .xlsx .xls .ods .pptx .ppt .odp': ('an office document', EXPORT),
    '.pdf .epub .mobi .djvu': ('a document for printing or reading', EXPORT),
    '.png .jpg .jpeg .gif .webp .tiff .mp3 .mp4 .wav .ogg .mov': ('a picture or sound', LEAVE_OUT),
    '.exe .dll .pyc .npy .npz .pkl .safetensors .h5 .sqlite': ('a program or data of one', LEAVE_OUT),
    '.lz4 .lzma .br .lzo .snappy': ('compressed in a way that is not read here', PACK),
    '.parquet': ('a Parquet file', PARQUET),
    '.arrow .feather .avro .orc .tfrecord .array_record': ('a file of records', CONVERT_RECORDS),
}
LFS = b'version https://git-lfs.github.com/spec/v1\n'
# First bytes of files that are not text: (bytes, kind of file, remedy). Compressed files come here only where
# their names do not say that they are compressed.
MAGIC = (
    (b'\x1f\x8b', 'gzip data', f'{NAME_IT}.gz'),
    (b'BZh', 'bzip2 data', f'{NAME_IT}.bz2'),
    (b'\xfd7zXZ\x00', 'xz data', f'{NAME_IT}.xz'),
    (b'\x28\xb5\x2f\xfd', 'Zstandard data', f'{NAME_IT}.zst'),
    (b'PK\x03\x04', 'a ZIP archive (.zip, .docx, .odt, .epub ..)', UNPACK),
    (b'PK\x05\x06', 'an empty ZIP archive', LEAVE_OUT),
    (b'%PDF-', 'a PDF', EXPORT),
    (b'\xd0\xcf\x11\xe0', 'an old office document', EXPORT),
    (b'{\\rtf', 'an office document (RTF)', EXPORT),
    (b'7z\xbc\xaf\x27\x1c', 'a 7-Zip archive', UNPACK),
    (b'Rar!\x1a\x07', 'a RAR archive', UNPACK),
    (b'\x1f\x9d', 'data of the program compress', PACK),
    (b'\x04\x22\x4d\x18', 'LZ4 data', PACK),
    (b'PAR1', 'a Parquet file', PARQUET),
    (b'ARROW1', 'an Arrow file', CONVERT_RECORDS),
    (b'SQLite format 3', 'a database (SQLite)', CONVERT_RECORDS),
    (b'\x7fELF', 'a program', LEAVE_OUT),
    (b'\x89PNG', 'a picture', LEAVE_OUT),
    (b'\xff\xd8\xff', 'a picture', LEAVE_OUT),
    (b'GIF8', 'a picture', LEAVE_OUT),
    (b'ID3', 'sound (MP3)', LEAVE_OUT),
    (b'OggS', 'sound', LEAVE_OUT),
    (LFS, 'a pointer of Git LFS to a file that was not fetched',
     'Fetch the files: git lfs pull'),
)
# How texts in 7-bit encodings switch to another set of characters: the letters of ASCII that follow are other text.
SWITCHES = (b'\x1b$@', b'\x1b$B', b'\x1b$(D', b'\x1b$)C', b'\x1b$)A', b'\x1b$)G')
PRINTABLE = (b'%PDF-', b'{\\rtf')  # of formats that may be all ASCII, and still are not text to learn from
MOST_ZEROS = 0.01  # share of zero bytes up to which a file may still be text

def refuse_name(path: str) -> None:
  """DataError for a file whose name says that it holds no text."""
  name = path.lower().rpartition('/')[2]
  for endings, (kind, fix) in ENDINGS.items():
    if name.endswith(tuple(endings.split())):
      raise DataError(f'{path} is {kind}, not text. {fix}.')


def refuse_content(head: bytes, path: str) -> None:
  """DataError for a file that is not text by its first bytes (uncompressed)."""
  _refuse_magic(head, path)
  if head[257:262] == b'ustar':
    raise DataError(f'{path} is a tar archive, not text. {UNPACK}.')
  if any(switch in head for switch in SWITCHES):
    raise DataError(f'{path} seems to be in ISO-2022 (JP, KR or CN), whose bytes are also valid UTF-8 of other '
                    f'letters; {CONVERT}')
  zeros = head.count(0)
  _, marked_encoding = mark_of(head)
  is_wide = marked_encoding not in ('', 'utf-8')  # UTF-16 and UTF-32 are full of zeros
  if is_wide or zeros <= MOST_ZEROS * len(head):
    return
  guess = _guess_utf16(head)
  if guess:
    raise DataError(f'{path} seems to be in {guess}, without a byte-order mark: convert it, for instance with iconv -f '
                    f'{guess} -t UTF-8.')
  raise DataError(f'{path} is not text: {zeros:,} of its first {len(head):,} bytes are zero. {LEAVE_OUT}.')


def _refuse_magic(head: bytes, path: str) -> None:
  for magic, kind, fix in MAGIC:
    if not head.startswith(magic):
      continue
    if _may_begin_text(magic) and _is_utf8(head):
      continue
    if fix.startswith(NAME_IT) and path.lower().endswith(fix.removeprefix(NAME_IT)):
      fix = 'It was packed twice: unpack it once'
    raise DataError(f'{path} is {kind}, not text. {fix}.')


def _may_begin_text(magic: bytes) -> bool:
  """Whether the first bytes of a format are a few letters, with which a text may begin too."""
  is_printable = magic.isascii() and magic.decode().isprintable()
  return is_printable and magic not in PRINTABLE


def _is_utf8(head: bytes) -> bool:
  """Whether bytes are UTF-8 without zeros; the last character may be cut off."""
  try:
    codecs.getincrementaldecoder('utf-8')().decode(head)
  except UnicodeDecodeError:
    return False
  return 0 not in head


def mark_of(content: bytes) -> tuple[bytes, str]:
  """(byte-order mark, encoding) that bytes begin with, (b'', '') for none."""
  for mark, encoding in MARKS:
    if content.startswith(mark):
      return mark, encoding
  return b'', ''


def decode(content: bytes, path: str) -> str:
  """Text of the whole content of a file, without its byte-order mark; DataError for content that is not text."""
  refuse_content(content[:HEAD], path)
  mark, encoding = mark_of(content)
  try:
    return content[len(mark):].decode(encoding or 'utf-8')
  except UnicodeDecodeError as error:
    offset = error.start + len(mark)
    place = f'byte 0x{content[offset]:02X} at offset {offset} of its text'
    if not mark:
      raise DataError(f'{path} is not UTF-8: {place}; {CONVERT}') from error
    name = encoding.upper()
    raise DataError(f'{path} begins with the byte-order mark of {name}, but is not in {name}: {place}. Copy or make '
                    'that file again.') from error


def _guess_utf16(head: bytes) -> str:
  """'UTF-16LE' or 'UTF-16BE' for bytes of which every second one is mostly zero, else ''."""
  pairs = len(head) // 2
  if not pairs:
    return ''
  zeros_at_even = head[0::2].count(0)
  zeros_at_odd = head[1::2].count(0)
  many = 0.4 * pairs
  few = 0.1 * pairs
  if zeros_at_odd > many and zeros_at_even < few:
    return 'UTF-16LE'
  if zeros_at_even > many and zeros_at_odd < few:
    return 'UTF-16BE'
  return ''
