"""The catalogue of TFDS, searched as text: how to make a dataset that does not exist on this machine."""
import dataclasses
import functools
import pathlib
import re

from t5like.files import mirror
from t5like.nearest import nearest
from t5like.sources import corpora

BUILT_IN = 'python_docs'
# The parts of the catalogue that hold text. TFDS knows their names only once they are imported.
COLLECTIONS = 'text translate summarization question_answering structured text_simplification'.split()
BUILDER = re.compile(r'^class (\w+)\(([^)]*)\)', re.M)
# Packages that we do not install, and how the code of a builder that needs them uses them.
NEEDED = {'tensorflow': r'\btf\.\w', 'apache-beam': r'\bbeam\.\w|BeamBasedBuilder'}


@dataclasses.dataclass(frozen=True)
class Name:
  """A dataset as data.source names it.

  Attributes:
    text: of data.source, after 'tfds:'.
    dataset: such as 'wiki40b'.
    config: such as 'en'; None where the dataset has none, or it is not named.
    version: such as '1.3.0'; None: the newest.
  """
  text: str
  dataset: str
  config: str | None
  version: str | None


def how_to_convert(folder: str) -> str:
  """Advice for a dataset whose records TFDS can write as array_record too, without downloading anything again."""
  return ('To write its records as array_record beside these: pip install tensorflow apache-beam mlcroissant && '
          f'tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record')


def _on_the_hub(name: str) -> str:
  """Advice to read the same text from files of the Hub; '' where that does not have it."""
  corpus = corpora.find(name)
  if corpus is None:
    return ''
  return (f' {corpus.title} ({corpus.size}, {corpus.licence}) can also be read from the files of '
          f"{corpus.page} on the Hugging Face Hub, after pip install -e '.[hf]': {corpora.flags(corpus)} "
          '(docs/datasets.md).')


def how_to_make(root: str, name: Name) -> str:
  """Advice for a dataset that does not exist; root: the folder or URL of all datasets."""
  if name.dataset == BUILT_IN:
    from t5like.sources import tfds_builder
    return f' This Python makes version {tfds_builder.VERSION} only.'
  on_the_hub = _on_the_hub(name.text)
  if name.dataset == 'c4':
    return f' TFDS makes C4 from terabytes of Common Crawl, on a cluster.{on_the_hub}'
  known = catalogue()
  if name.dataset not in known:
    guess = ''
    close = nearest(name.dataset, known, most=3, close=0.5)
    if close:
      guess = f'; the nearest names are {", ".join(close)}'
    return f' TFDS has no dataset {name.dataset!r} of text{guess}.{on_the_hub}'
  place = ''
  if mirror.is_remote(root):
    place = ' (in a local folder, to be copied: these files cannot be written to a URL)'
    root = 'FOLDER'
  return (f' To prepare it there{place}: {_command(name.text, known[name.dataset], root)} It downloads, which without '
          f'network is given up only after minutes.{_needs(known[name.dataset])}{on_the_hub}')


def _command(name: str, builder: pathlib.Path, root: str) -> str:
  """A line for a shell that prepares a dataset."""
  modules = 'tensorflow_datasets as tfds'
  collection = _collection(builder)
  if collection:  # to be imported, else TFDS does not know the name
    modules = f'{modules}, tensorflow_datasets.{collection}'
  return (f'python -c "import {modules}; '
          f"tfds.builder('{name}', data_dir='{root}', file_format='array_record').download_and_prepare()\"")


@functools.cache
def catalogue() -> dict[str, pathlib.Path]:
  """{name: path of the builder's code} of TFDS's datasets of text, found without importing them."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import naming
  root = pathlib.Path(tfds.__file__).parent
  builders = {}
  for collection in COLLECTIONS:
    for path in sorted((root / collection).rglob('*.py')):
      if not path.stem.endswith('_test'):
        for name in _builders(path):
          builders[naming.camelcase_to_snakecase(name)] = path
  for path in root.glob('datasets/*/*_dataset_builder.py'):  # these are known to TFDS without an import
    builders[path.parent.name] = path
  return builders


def _builders(path: pathlib.Path) -> list[str]:
  """Names of the classes in a file that build datasets."""
  classes = BUILDER.findall(path.read_text(encoding='utf-8'))
  return [name for name, bases in classes if re.search(r'Builder\b|Translate\b', bases)]


def _collection(builder: pathlib.Path) -> str:
  """The one of COLLECTIONS that a builder's code belongs to; '' for one that TFDS knows without an import."""
  if 'datasets' in builder.parts[-3:-1]:
    return ''
  for part in reversed(builder.parts):
    if part in COLLECTIONS:
      return part
  return ''


def _needs(builder: pathlib.Path) -> str:
  """Which packages that we do not install a builder's code uses, as a sentence; '' for none."""
  code = builder.read_text(encoding='utf-8')
  code = re.sub(r'#.*|"""(?s:.*?)"""', '', code)
  packages = [f'{package} (pip install {package})' for package, use in NEEDED.items() if re.search(use, code)]
  if not packages:
    return ''
  return f' To be made it needs {" and ".join(packages)}.'
