"""Public datasets as files that can be read directly: their addresses, sizes and licences.

The names are those of TFDS, which many configs use. Where the TFDS dataset is not prepared on this machine, the
values here read the same text from the files of the Hugging Face Hub instead. docs/datasets.md explains each.
"""
import dataclasses
import shlex

HUB = 'hf://datasets'
COMMON_CRAWL = 'ODC-BY, and the terms of Common Crawl'  # licence


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A dataset on the Hub.

  Attributes:
    title: its common name.
    page: its repository on the Hub, 'owner/name'.
    size: of the files that are read, for people.
    licence: of the text, for people.
    data: {key of config.data: value} that read it.
  """
  title: str
  page: str
  size: str
  licence: str
  data: dict[str, str]


def _c4(language: str, size: str) -> Corpus:
  """One language of mC4."""
  folder = f'{HUB}/allenai/c4/multilingual'
  data = dict(
      source=f'jsonl:{folder}/c4-{language}.tfrecord-*.json.gz',
      validation=f'jsonl:{folder}/c4-{language}-validation.tfrecord-*.json.gz')
  return Corpus(f'mC4, {language}', 'allenai/c4', size, COMMON_CRAWL, data)


def _wmt(year: int, size: str) -> Corpus:
  """German and English of a WMT news task; English to German, with T5's prefix."""
  folder = f'{HUB}/wmt/wmt{year}/de-en'
  data = dict(
      source=f'parquet:{folder}/train-*.parquet', validation=f'parquet:{folder}/validation-*.parquet',
      inputs='translate English to German: {translation[en]}', targets='{translation[de]}')
  return Corpus(f'WMT {year}, German and English', f'wmt/wmt{year}', size, 'as the task says: for research', data)


CORPORA = {
    'c4/en': Corpus('C4, English', 'allenai/c4', '305 GB', COMMON_CRAWL, dict(
        source=f'jsonl:{HUB}/allenai/c4/en/c4-train.*.json.gz',
        validation=f'jsonl:{HUB}/allenai/c4/en/c4-validation.*.json.gz')),
    'c4/realnewslike': Corpus('C4, news', 'allenai/c4', '15 GB', COMMON_CRAWL, dict(
        source=f'jsonl:{HUB}/allenai/c4/realnewslike/c4-train.*.json.gz',
        validation=f'jsonl:{HUB}/allenai/c4/realnewslike/c4-validation.*.json.gz')),
    'c4/multilingual': _c4('de', 'all 108 languages 9.7 TB'),
    'fineweb_edu': Corpus('FineWeb-Edu, 10B tokens', 'HuggingFaceFW/fineweb-edu',
                          '10B tokens of GPT-2', COMMON_CRAWL, dict(
        source=f'parquet:{HUB}/HuggingFaceFW/fineweb-edu/sample/10BT/*.parquet', validation='hash')),
    'fineweb': Corpus('FineWeb, 10B tokens', 'HuggingFaceFW/fineweb',
                      '10B tokens of GPT-2', COMMON_CRAWL, dict(
        source=f'parquet:{HUB}/HuggingFaceFW/fineweb/sample/10BT/*.parquet', validation='hash')),
    'openwebtext': Corpus('OpenWebText', 'Skylion007/openwebtext', '24 GB', 'CC0 for the packaging', dict(
        source=f'parquet:{HUB}/Skylion007/openwebtext/**/train-*.parquet', validation='hash')),
    'wikipedia': Corpus('Wikipedia, English', 'wikimedia/wikipedia', '12 GB', 'CC BY-SA and GFDL', dict(
        source=f'parquet:{HUB}/wikimedia/wikipedia/20231101.en/train-*.parquet', validation='hash')),
    'pile_uncopyrighted': Corpus('The Pile without its copyrighted parts', 'monology/pile-uncopyrighted', '330 GB',
                                 'as its parts', dict(
        source=f'jsonl:{HUB}/monology/pile-uncopyrighted/train/*.jsonl.zst',
        validation=f'jsonl:{HUB}/monology/pile-uncopyrighted/val.jsonl.zst')),
    'cnn_dailymail': Corpus('CNN/DailyMail', 'abisee/cnn_dailymail', '0.8 GB', 'Apache-2.0', dict(
        source=f'parquet:{HUB}/abisee/cnn_dailymail/3.0.0/train-*.parquet',
        validation=f'parquet:{HUB}/abisee/cnn_dailymail/3.0.0/validation-*.parquet',
        inputs='summarize: {article}', targets='{highlights}')),
    'wmt14_translate/de-en': _wmt(14, '0.8 GB'),
    'wmt17_translate/de-en': _wmt(17, '1 GB'),
    'glue/sst2': Corpus('SST-2 of GLUE', 'nyu-mll/glue', '5 MB', 'as its authors say: for research', dict(
        source=f'parquet:{HUB}/nyu-mll/glue/sst2/train-*.parquet',
        validation=f'parquet:{HUB}/nyu-mll/glue/sst2/validation-*.parquet')),
    'squad': Corpus('SQuAD 1.1', 'rajpurkar/squad', '15 MB', 'CC BY-SA 4.0', dict(
        source=f'parquet:{HUB}/rajpurkar/squad/plain_text/train-*.parquet',
        validation=f'parquet:{HUB}/rajpurkar/squad/plain_text/validation-*.parquet')),
}


def find(tfds_name: str) -> Corpus | None:
  """The Corpus with the text of a TFDS dataset, 'c4/en' or 'wikipedia/20230601.en:1.0.0', or None."""
  name = tfds_name.partition(':')[0]
  if name in CORPORA:
    return CORPORA[name]
  return CORPORA.get(name.partition('/')[0])


def flags(corpus: Corpus) -> str:
  """'--config.data.source=.. ..', to be added to a command in a shell."""
  words = [f'--config.data.{key}={value}' for key, value in corpus.data.items()]
  return shlex.join(words)
