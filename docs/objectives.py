"""Writes docs/objectives.md and the pictures it shows: what each objective makes of one sentence, by the code that
training runs (`t5like/batches/rows.py` and what it calls, `make_mask` of `t5like/model/attention_kernels.py`).

    python docs/objectives.py

tests/test_docs.py fails when the page or a picture is not what this writes.
"""
import dataclasses
import os
import pathlib
import pprint
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from docs.drawing import Grid, Line, picture
from docs.objectives_text import HEAD, SECTIONS
from t5like import config as config_lib
from t5like.batches import rows as rows_lib
from t5like.config import base, templates
from t5like.model import attention_kernels
from t5like.objectives import asking, lengths
from t5like.objectives.spec import Pair
from t5like.prepared import store as store_lib
from t5like.vocabulary.kinds import Table, Vocabulary

HERE = pathlib.Path(__file__).resolve().parent
RECORD = dict(text='A squirrel hides more acorns than it finds .', short='Squirrels forget .')
SECOND = 'Oaks grow there .'
PIECES = {'squirrel': 'squir +rel', 'Squirrels': 'Squir +rel +s', 'acorns': 'acorn +s', 'shorten:': 'shorten :'}
OTHERS = 'tea blue seven runs under why'.split()  # what tokens may be replaced by
SMALL = {'data.seq_len': 48, 'data.packing': 'none', 'vocabulary.sentinels': 32, 'objective.noise_density': 0.3,
         'objective.mean_span': 2.0, 'stop.tokens': 1000, 'sample.prompts': ()}  # the sentence is short


class Words(Vocabulary):
  """Every word of the sentences an id, or two pieces; '+' marks pieces that go on with a word."""

  def __init__(self, mode, num_sentinels):
    words = ' '.join([*RECORD.values(), SECOND, 'shorten:', *OTHERS, mode]).split()
    names = list(dict.fromkeys(['<pad>', '</s>', *' '.join(PIECES.get(w, w) for w in words).split()]))
    self._ids = {name: i for i, name in enumerate(names)}
    sentinels = [len(names) + k for k in range(num_sentinels)]
    names += [''] * num_sentinels
    begins_word = [name[:1] != '+' for name in names]
    super().__init__(Table(names, [b''] * len(names), begins_word, pad=0, eos=1, unk=None, sentinels=sentinels), b'')

  def encode_batch(self, texts):
    split = [' '.join(PIECES.get(word, word) for word in text.split()).split() for text in texts]
    return [np.array([self._ids[piece] for piece in pieces], np.int32) for pieces in split]


class Sentences:
  """What `rows.Rows` asks of a prepared dataset, over arrays of tokens that are in memory."""
  folder, fingerprint, splits = '', '', ['train']

  def __init__(self, vocabulary, examples):
    """`examples`: tuples of texts, one each or two."""
    ids = [[np.append(vocabulary.encode(text), vocabulary.eos_id) for text in texts] for texts in examples]
    self.vocabulary = vocabulary
    self.manifest = dict(splits=dict(train=dict(documents=len(ids))))
    self.stream = np.concatenate([text for texts in ids for text in texts])
    self.sizes, self.bases = [len(self.stream)], [0, len(self.stream)]
    self.lengths = np.array([[len(text) for text in texts] for texts in ids], np.int32)
    self.starts = np.concatenate([[0], np.cumsum(self.lengths.sum(1))])

  def of(self, component):
    return self

  tokens = examples = of

  def windows(self, split, length, stride, tail):
    return store_lib.Windows(self, length, stride, tail)

  def span(self, start, size):
    return self.stream[start:start + size]

  def read(self, shard, start, stop, out):
    out[:stop - start] = self.stream[start:stop]


@dataclasses.dataclass
class Row:
  """A row that training would read (arrays without padding), the config and text it came from."""
  batch: dict
  text: np.ndarray
  component: lengths.Component
  vocabulary: Words


def make_row(keys, draw, part=0):
  """The Row of a config with `keys` (flat); draw: the epoch, whose random numbers it has; part: of ul2's denoisers."""
  c = base()
  c.update_from_flattened_dict({**SMALL, **keys})
  config_lib.validate(c)
  component = lengths.components(c)[part]
  vocabulary = Words(component.mode, c.vocabulary.sentinels)
  examples = [templates.texts(c.data, RECORD, 'the sentence')]
  if c.data.packing != 'none':
    examples.append((SECOND,))
  store = Sentences(vocabulary, examples)
  batch = rows_lib.Rows(store, component, 'train', 0, part).batch([0], [draw])
  return Row(_trimmed(batch), store.stream, component, vocabulary)


def _trimmed(batch):
  """Row 0 of a batch without what is padding; predictions of a masked LM at their positions, weight 0 elsewhere."""
  there = batch['segments'][0] > 0
  out = {k: v[0] for k, v in batch.items() if k != 'encoder'}
  if 'predict' in out:
    at, used = out.pop('predict'), out['weights'] > 0
    for key in ('targets', 'weights'):
      wide = np.zeros(len(there), out[key].dtype)
      wide[at[used]] = out[key][used]
      out[key] = wide
  out = {k: v[there] for k, v in out.items()}
  if 'encoder' in batch:
    out['encoder'] = _trimmed(batch['encoder'])
  return out


# --- From rows to boxes and grids -----------------------------------------------------------------------


def show(row):
  """([Line], [Grid]) of a Row."""
  batch, kind = row.batch, row.component.config.model.name
  double = Line(['reads', 'predicts'], list(zip(_read(row, batch), _predicted(row))))
  lines = [] if row.component.objective.given else [Line(['text'], [(box,) for box in _spoiled(row)])]
  if kind == 'encoder_decoder':
    lines.append(Line(['encoder reads'], [(box,) for box in _read(row, batch['encoder'])]))
    double.labels = ['decoder reads', 'decoder predicts']
    grids = [_grid('encoder (line) sees encoder', row, batch['encoder'], batch['encoder'], False),
             _grid('decoder (line) sees decoder', row, batch, batch, True),
             _grid('decoder (line) sees encoder', row, batch, batch['encoder'], False)]
  else:
    grids = [_grid('who (line) sees whom (column)', row, batch, batch, kind == 'decoder')]
  return [*lines, double], grids


def _is_masked(row):
  return row.component.config.model.name == 'encoder'


def _is_aligned(row):
  """Whether inputs are as long as the text, token by token."""
  layout = row.component.layout
  return isinstance(layout, Pair) and layout.ask is asking.CORRUPTED


def _name(row, i):
  """As pictures show an id: <0> for <extra_id_0>, which masked LMs know as <mask>."""
  v = row.vocabulary
  special = {v.mask_id: '<mask>', v.cls_id: '<cls>'} if _is_masked(row) else {}
  return special.get(int(i), v.pieces([i])[0].replace('extra_id_', ''))


def _box(row, i):
  v = row.vocabulary
  kind = 'mode' if row.component.mode and i in v.encode(row.component.mode) else 'word'
  if i in v.special_ids:
    kind = 'special' if i in (v.pad_id, v.eos_id) or _name(row, i) == '<cls>' else 'sentinel'
  return _name(row, i), kind


def _read(row, info):
  """Boxes of what a stack reads; words that are not what the text has there are marked."""
  boxes = [_box(row, i) for i in info['inputs']]
  if _is_masked(row):
    for t in np.flatnonzero(row.batch['weights']):
      if info['inputs'][t] != row.vocabulary.mask_id:
        boxes[t] = boxes[t][0], 'gone' if info['inputs'][t] == row.batch['targets'][t] else 'random'
  if _is_aligned(row) and info is not row.batch:
    for t, (i, j) in enumerate(zip(info['inputs'], row.text)):
      if i != j and boxes[t][1] == 'word':
        boxes[t] = boxes[t][0], 'random'
  return boxes


def _predicted(row):
  """Boxes of targets: those of weight 0 are dashed, of a masked LM left out."""
  masked = row.component.config.model.name == 'encoder'
  found = []
  for i, weight in zip(row.batch['targets'], row.batch['weights']):
    name, kind = _box(row, i)
    found.append((name, 'learned' if kind == 'word' else kind) if weight else None if masked else (name, 'ignored'))
  return found


def _spoiled(row):
  """Boxes of the text, what is taken out of the inputs marked."""
  o, batch = row.component.config.objective, row.batch
  boxes = [_box(row, i) for i in row.text]
  if 'noise_density' not in row.component.objective.keys:  # whose inputs lack nothing
    return boxes
  if _is_masked(row):
    gone = batch['weights'][int(o.cls_sep):][:len(boxes)] > 0
  else:
    inputs = batch['encoder']['inputs'] if 'encoder' in batch else batch['targets'][batch['weights'] == 0]
    gone = inputs != row.text if _is_aligned(row) else ~np.isin(row.text, inputs)
  return [(name, 'gone' if g and kind == 'word' else kind) for (name, kind), g in zip(boxes, gone)]


def _grid(title, row, query, key, causal):
  """Grid of `make_mask`; what is seen only because it is a prefix has a colour of its own."""
  wide = lambda info, names: {k: v[None] for k, v in info.items() if k in names}
  names = ('positions', 'segments', *(['prefix'] if row.component.config.model.prefix_mask else []))
  mask = np.array(attention_kernels.make_mask(wide(query, names), wide(key, names), causal)[0])
  plain = np.array(attention_kernels.make_mask(wide(query, names[:2]), wide(key, names[:2]), causal)[0])
  cells = np.where(mask, np.where(plain, 'seen', 'prefix'), 'unseen').tolist()
  return Grid(title, *([_name(row, i) for i in info['inputs']] for info in (query, key)), cells)


# --- The page -----------------------------------------------------------------------------------------------


def _line(key, value):
  return f'c.{key} = ' + pprint.pformat(value, width=90).replace('\n', '\n   ')


def files():
  """{path below docs/: text} of the page and its pictures."""
  found, page = {}, [HEAD]
  for section in SECTIONS:
    page.append(f'## {section.title}\n\n{section.text.strip()}\n')
    if section.keys:
      page.append('```\n' + '\n'.join(_line(k, v) for k, v in section.keys.items()) + '\n```\n')
    for p in section.pictures:
      row = make_row({**section.keys, **p.keys}, p.draw, p.part)
      lines, grids = show(row)
      said = '; '.join(f'{label}: ' + ' '.join(column[k][0] for column in line.columns if column[k])
                       for line in lines for k, label in enumerate(line.labels))
      path = f'pictures/{p.name}.svg'
      found[path] = picture(f'{p.caption}. {said}', lines, grids)
      alt = f'{section.title}: tokens that are read and predicted, and who sees whom'
      page.append(f'{p.caption}:\n\n![{alt}]({path})\n')
  found['objectives.md'] = '\n'.join(page)
  return found


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  (HERE / 'pictures').mkdir(exist_ok=True)
  for name, text in files().items():
    (HERE / name).write_text(text, encoding='utf-8')
