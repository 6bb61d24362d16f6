"""Rows of every objective, architecture and packing, and how each is asked: checksums that no machine changes.

    python -m tests.goldens.rows            # compares with tests/goldens/rows.json
    python -m tests.goldens.rows --write    # keeps what this tree gives
"""
import hashlib
import itertools
import json
import pathlib
import sys
import tempfile

from t5like.batches import pipeline
from t5like.decoding import decode
from t5like.errors import ConfigError
from t5like.evals import ask
from t5like.objectives import lengths
from t5like.prepared import opening
from tests import tiny

FILE = pathlib.Path(__file__).with_name('rows.json')
ARCHITECTURES = ('decoder', 'encoder', 'encoder_decoder')
PACKINGS = ('concat_split', 'best_fit', 'none')
OBJECTIVES = {  # keys of config.objective
    'causal': {}, 'causal, a stream': {}, 'prefix_lm': {}, 'masked_lm': {},
    'masked_lm, roberta': dict(masking='roberta', whole_word=True, cls_sep=True),
    'masked_lm, bernoulli': dict(masking='bernoulli', predictions=7),
    'span_corruption': dict(noise_density=0.3, mean_span=2.0), 'span_corruption, half': dict(noise_density=0.5),
    'span_corruption, roll': dict(roll=True), 'iid_denoising': {}, 'mass': {}, 'bert_style': {}, 'deshuffling': {},
    'drop': {}, 'lm': {}, 'ul2': {}, 'ul2, no modes': dict(denoisers=('1 3 0.15', '1 prefix')), 'seq2seq': {}}
QUESTIONS = (('the a of', ' to in', ''), ('was not have', ' with', ' from by'), ('', 'as on', ' this'),
             ('is it for on as with that this from by are be was not have', ' the a of', ' to in is it for on as with'))


def config(folder: pathlib.Path, label: str, architecture: str, packing: str):
  """The config of a combination. ConfigError for those that do not go together."""
  name, _, variant = label.partition(', ')
  data = dict(packing=packing, seq_len=64)
  if variant == 'a stream':
    data.update(document_mask=False)
  if name == 'seq2seq':
    data.update(inputs='copy: {text}', targets='{text}', target_len=80 if architecture == 'encoder_decoder' else 0)
  return tiny.config(folder, batch_size=8, data=data, objective=dict(OBJECTIVES[label], name=name),
                     model=dict(name=architecture, vocab_size=304), vocabulary=dict(sentinels=40))


def checksum(batches: list[dict]) -> str:
  """Of all arrays of some batches: names, dtypes, shapes and bytes."""
  digest = hashlib.sha256()
  for batch in batches:
    for key in sorted(batch):
      value = batch[key]
      if isinstance(value, dict):
        digest.update(f'{key} {checksum([value])}'.encode())
      else:
        digest.update(f'{key} {value.dtype} {value.shape}'.encode() + value.tobytes())
  return digest.hexdigest()[:16]


def questions(c, vocabulary) -> str:
  """A checksum of all that a model of a config is asked; the refusal of one that cannot be asked."""
  try:
    asker = ask.Asker(c, vocabulary)
  except ConfigError as error:
    return str(error)
  said = [asker.rows(*question) for question in QUESTIONS]
  said += [asker.prompt(before, after, 8) for before, _, after in QUESTIONS]
  said.append(list(ask.windows(asker, range(10, 400))))
  if asker.style.fills:
    said.append(asker.blank(*QUESTIONS[1]))
  return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def combination(folder: pathlib.Path, label: str, architecture: str, packing: str) -> dict | None:
  """What is kept of a combination; None where it is refused."""
  try:
    c = config(folder, label, architecture, packing)
  except ConfigError:
    return None
  store = opening.open_data(c, say=lambda _: None)
  rows = pipeline.TrainRows(store, c)
  count = len(rows.parts[0])
  batches = [rows.batch(range(16)), rows.batch(range(count, count + 8))]  # the second epoch too
  fill = ['' if packing == 'concat_split' else str(part.plan.fill.round(6).tolist()) for part in rows.parts]
  return dict(lengths=[repr(lengths.of(part)) for part in lengths.components(c)], rows=checksum(batches),
              validation=checksum([batch for _, batch in pipeline.evaluation_batches(store, c)]),
              epoch=[len(part) for part in rows.parts], fill=fill, style=decode.style_of(c),
              asked=questions(c, store.vocabulary))


def everything(folder: pathlib.Path) -> dict:
  """{'objective / architecture / packing': what is kept}."""
  out = {}
  for label, architecture, packing in itertools.product(OBJECTIVES, ARCHITECTURES, PACKINGS):
    out[f'{label} / {architecture} / {packing}'] = combination(folder, label, architecture, packing)
  return out


def main(argv: list[str]) -> int:
  with tempfile.TemporaryDirectory() as folder:
    now = everything(pathlib.Path(folder))
  if argv == ['--write']:
    FILE.write_text(json.dumps(now, indent=1) + '\n')
    return 0
  kept = json.loads(FILE.read_text())
  wrong = [key for key in {**kept, **now} if key not in kept or key not in now or kept[key] != now[key]]
  print('\n'.join(f'{key}: {kept.get(key)}, now {now.get(key)}' for key in wrong[:5]) or f'{len(now)} as they were')
  return int(bool(wrong))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
