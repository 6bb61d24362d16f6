"""What files hold, by their names and first bytes: text in UTF-8 or with a mark of UTF-16 or UTF-32, or no text.

What is no text is refused with what it is: advice to convert it would make rubbish that trains.
"""
import codecs

from t5like.errors import DataError

HEAD = 1 << 16  # bytes that are looked at
# Longest first, for UTF-32's mark begins with UTF-16's.
MARKS = ((codecs.BOM_UTF32_LE, 'utf-32-le'), (codecs.BOM_UTF32_BE, 'utf-32-be'), (codecs.BOM_UTF8, 'utf-8'),
         (codecs.BOM_UTF16_LE, 'utf-16-le'), (codecs.BOM_UTF16_BE, 'utf-16-be'))

UNPACK = 'Unpack it, and give its files'
EXPORT = 'Save what it says as plain text (UTF-8), and give that'
PACK = 'Pack it as .gz, .bz2, .xz or .zst'
CONVERT_RECORDS = 'Convert it to Parquet or JSON lines'
LEAVE_OUT = 'Leave it out of the glob'
PARQUET = "Read it with data.source='parquet:GLOB'"
# No encoding is named: the wrong one, too, makes something that trains.
CONVERT = ('if it is text, find out its encoding (file -i guesses, open it to see) and convert it: '
           'iconv -f ENCODING -t UTF-8.')
# Endings of what is never text: what it is, and what to do.
ENDINGS = {
    '.zip .7z .rar .tar .tgz .tbz2 .txz .tar.gz .tar.bz2 .tar.xz .tar.zst .jar .whl': ('an archive of files', UNPACK),
    '.docx .odt .xlsx .xls .ods .pptx .ppt .odp': ('an office document', EXPORT),
    '.pdf .epub .mobi .djvu': ('a document for printing or reading', EXPORT),
    '.png .jpg .jpeg .gif .webp .tiff .mp3 .mp4 .wav .ogg .mov': ('a picture or sound', LEAVE_OUT),
    '.exe .dll .pyc .npy .npz .pkl .safetensors .h5 .sqlite': ('a program or data of one', LEAVE_OUT),
    '.lz4 .br .lzo .snappy': ('compressed in a way that is not read here', PACK),
    '.parquet': ('a Parquet file', PARQUET),
    '.arrow .feather .avro .orc .tfrecord .array_record': ('a file of records', CONVERT_RECORDS),
}
# First bytes of what is no text. Those of compressed files are met where the name does not say so.
MAGIC = (
    (b'\x1f\x8b', 'gzip data', 'Let its name end in .gz'),
    (b'BZh', 'bzip2 data', 'Let its name end in .bz2'),
    (b'\xfd7zXZ\x00', 'xz data', 'Let its name end in .xz'),
    (b'\x28\xb5\x2f\xfd', 'Zstandard data', 'Let its name end in .zst'),
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
)
PRINTABLE = (b'%PDF-', b'{\\rtf')  # of formats that may be all ASCII, and still are no text to learn
MOST_ZEROS = 0.01  # share of bytes that are zero in what may still be text


def refuse_name(path):
  """DataError for a file whose name says that it holds no text."""
  name = path.lower().rpartition('/')[2]
  for endings, (what, fix) in ENDINGS.items():
    if name.endswith(tuple(endings.split())):
      raise DataError(f'{path} is {what}, not text. {fix}.')


def refuse_content(head, path):
  """DataError for a file that is no text by its first bytes (uncompressed)."""
  for magic, what, fix in MAGIC:
    # A few letters may begin a text, too.
    doubtful = magic.isascii() and magic.decode().isprintable() and magic not in PRINTABLE
    if head.startswith(magic) and not (doubtful and _is_utf8(head)):
      raise DataError(f'{path} is {what}, not text. {fix}.')
  if head[257:262] == b'ustar':
    raise DataError(f'{path} is a tar archive, not text. {UNPACK}.')
  zeros = head.count(0)
  if zeros <= MOST_ZEROS * len(head) or mark_of(head)[1] not in ('', 'utf-8'):
    return
  guess = _without_mark(head)
  if guess:
    raise DataError(f'{path} seems to be in {guess}, without a byte-order mark: convert it, for instance with iconv -f '
                    f'{guess} -t UTF-8.')
  raise DataError(f'{path} is not text: {zeros:,} of its first {len(head):,} bytes are zero. {LEAVE_OUT}.')


def _is_utf8(head):
  """Whether bytes are UTF-8 without zeros, a character that is cut off at their end aside."""
  try:
    codecs.getincrementaldecoder('utf-8')().decode(head)
  except UnicodeDecodeError:
    return False
  return 0 not in head


def mark_of(content):
  """(byte-order mark, encoding) that bytes begin with, (b'', '') for none."""
  return next(((mark, name) for mark, name in MARKS if content.startswith(mark)), (b'', ''))


def decode(content, path):
  """Text of the whole content of a file, without its byte-order mark; DataError for what is no text."""
  refuse_content(content[:HEAD], path)
  mark, encoding = mark_of(content)
  try:
    return content[len(mark):].decode(encoding or 'utf-8')
  except UnicodeDecodeError as error:
    at = error.start + len(mark)
    if mark:
      name = encoding.upper()
      raise DataError(f'{path} begins with the byte-order mark of {name}, and is not in {name}: byte '
                      f'0x{content[at]:02X} at offset {at} of its text. Copy or make that file again.') from error
    raise DataError(f'{path} is not UTF-8: byte 0x{content[at]:02X} at offset {at} of its text; {CONVERT}') from error


def _without_mark(head):
  """'UTF-16LE' or 'UTF-16BE' for bytes of which every second one is mostly zero, else ''."""
  pairs = len(head) // 2
  at_even, at_odd = head[0::2].count(0), head[1::2].count(0)
  if pairs and at_odd > 0.4 * pairs and at_even < 0.1 * pairs:
    return 'UTF-16LE'
  if pairs and at_even > 0.4 * pairs and at_odd < 0.1 * pairs:
    return 'UTF-16BE'
  return ''
