"""An objective is one entry: that of docs/adding.md trained, prompted and asked; entries that leave a part out."""
import dataclasses
import re

import jax
import pytest

from t5like.batches import pipeline
from t5like.config import rules
from t5like.decoding import decode, trained_model
from t5like.errors import ConfigError
from t5like.evals import ask, score
from t5like.objectives import lengths, pairs, spec, table
from t5like.objectives.spec import Incomplete, Objective, OneStack, Pair
from t5like.prepared import opening
from t5like.training import loop
from t5like.vocabulary.requirements import check_vocabulary
from tests import tiny
from tests.conftest import ROOT

NAME = 'fill_in_the_middle'
EOS = 1


def of_the_guide() -> Objective:
  """The entry that docs/adding.md shows, made by the lines that it adds to t5like/objectives/pairs.py."""
  text = (ROOT / 'docs' / 'adding.md').read_text(encoding='utf-8')
  hunk = re.search(r'^--- t5like/objectives/pairs.py\n(.*?)^```', text, re.M | re.S)[1]
  added = '\n'.join(line[1:] for line in hunk.splitlines() if line.startswith('+'))
  names = dict(vars(pairs))
  exec(compile(added, 'docs/adding.md', 'exec'), names)
  return names['FILL_IN_THE_MIDDLE']


@pytest.fixture
def entry(monkeypatch):
  made = of_the_guide()
  monkeypatch.setitem(table.OBJECTIVES, NAME, made)
  return made


def config(folder, **sections):
  data = dict(dict(seq_len=64), **sections.pop('data', {}))
  vocabulary = dict(dict(sentinels=3), **sections.pop('vocabulary', {}))
  return tiny.config(folder, data=data, vocabulary=vocabulary, objective=dict(name=NAME), **sections)


def test_it_is_a_choice_only_while_it_is_in_the_table(tmp_path, monkeypatch):
  with pytest.raises(ConfigError, match=f"objective.name='{NAME}'"):
    config(tmp_path)
  monkeypatch.setitem(table.OBJECTIVES, NAME, of_the_guide())
  assert NAME in rules.CHOICES['objective.name']
  config(tmp_path)


def middle_put_back(ids, prefix, vocabulary):
  """The text of a segment, whose inputs are marked by `prefix` [n]."""
  before, hole, after = (vocabulary.sentinel(k) for k in range(3))
  inputs, middle = ids[:prefix], ids[prefix:]
  assert inputs[0] == before and inputs[-2:] == [after, EOS] and middle[-1] == EOS
  at = inputs.index(hole)
  return [*inputs[1:at], *middle[:-1], *inputs[at + 1:-2]]


@pytest.mark.parametrize('packing', ['concat_split', 'best_fit', 'none'])
def test_its_rows_are_full_and_hold_the_text(packing, entry, tmp_path):
  c = config(tmp_path, data=dict(packing=packing))
  store = opening.open_data(c, say=lambda _: None)
  part = pipeline.TrainRows(store, c).parts[0]
  assert lengths.shapes(c) == spec.Lengths(raw=59, inputs=0, targets=64, spans=3)
  batch = part.batch(list(range(16)), [0] * 16)
  cuts = set()
  for row in range(16):
    segments = batch['segments'][row]
    if packing == 'concat_split':
      ends_a_document = part.store.tokens('train').span(*part.spans(row)[0])[-1] == EOS  # which is no text
      assert (segments > 0).sum() == 64 - ends_a_document
    texts = []
    for s in range(1, segments.max() + 1):
      here = segments == s
      ids, predicted = batch['targets'][row][here].tolist(), batch['weights'][row][here] > 0
      prefix = int((~predicted).sum())
      assert predicted[prefix:].all() and not predicted[:prefix].any()
      assert batch['prefix'][row][here].tolist() == [t <= prefix for t in range(len(ids))]
      texts.append(middle_put_back(ids, prefix, store.vocabulary))
      cuts.add((ids.index(store.vocabulary.sentinel(1)), prefix))
    spans = [part.store.tokens('train').span(*span).tolist() for span in part.spans(row)]
    assert texts == [span[:-1] if span[-1] == EOS else span for span in spans]
  assert len(cuts) > 8
  if packing == 'best_fit':
    assert part.plan.fill[0] > 0.85


def test_it_trains_and_answers_and_is_asked(entry, tmp_path):
  c = config(tmp_path, steps=40, stop=dict(tokens=40 * 16 * 64), evaluate=dict(every=40), checkpoint=dict(every=40),
             sample=dict(prompts=('<extra_id_0>the<extra_id_1>that<extra_id_2>',), tokens=8))
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  steps, _ = tiny.metrics(tmp_path / 'run')
  assert steps[-1]['nll'] < steps[0]['nll'] - 1.5
  model = trained_model.load(tmp_path / 'run')
  assert model.style == decode.style_of(c) == 'pair'
  answers = model.generate(['<extra_id_0>the<extra_id_1> that<extra_id_2>'], tokens=8)
  assert isinstance(answers[0], str)
  scorer = score.Scorer(model.model, model.params, model.vocabulary, model.config, model.mesh)
  likely, unlikely = scorer.score([('the a ', 'of', ' to in'), ('the a ', 'ZQ', ' to in')])
  assert likely.logp > unlikely.logp and likely.cut == 0


def test_questions_stand_as_rows_do(entry, tmp_path):
  c = config(tmp_path)
  vocabulary = opening.open_data(c, say=lambda _: None).vocabulary
  asker = ask.Asker(c, vocabulary)
  a, b, c_ = (vocabulary.sentinel(k) for k in range(3))
  (row,) = asker.rows_of_ids([10, 11], [20, 21], [30])
  assert row.inputs == [vocabulary.bos_id, a, 10, 11, b, 30, c_, EOS, 20]
  assert (row.predict, row.targets, row.prefix, row.cut) == ([7, 8], [20, 21], 8, 0)
  (row,) = asker.rows_of_ids(list(range(10, 110)), [200], [201, 202])
  assert row.inputs[:2] == [vocabulary.bos_id, a] and len(row.inputs) == 64 and row.cut == 43
  assert row.inputs[-6:] == [109, b, 201, 202, c_, EOS]
  assert asker.prompt('the', ' that', 8) == [a, *vocabulary.encode('the'), b, *vocabulary.encode(' that'), c_]
  for before, answer in ask.windows(asker, range(10, 210)):
    (row,) = asker.rows_of_ids(before, answer)
    assert row.cut == 0 and len(row.inputs) <= 64


def test_its_vocabulary_must_have_three_sentinels(entry, tmp_path):
  with pytest.raises(ConfigError, match='vocabulary.sentinels=2: .* needs 3 for the beginnings of prefix') as e:
    config(tmp_path, vocabulary=dict(sentinels=2))
  assert 'Use at least 3' in str(e.value) and '\n' not in str(e.value)
  c = config(tmp_path)
  c.vocabulary.sentinels = 0
  with pytest.raises(ConfigError, match='needs 3 sentinels .* which begin prefix, suffix and middle'):
    check_vocabulary(c)


def test_what_does_not_go_with_it_is_refused(entry, tmp_path):
  with pytest.raises(ConfigError, match="cannot be trained on it. Use model.name='decoder'"):
    config(tmp_path, model=dict(name='encoder_decoder'))
  with pytest.raises(ConfigError, match="only objective.name='seq2seq' learns given targets"):
    config(tmp_path, data=dict(inputs='{a}', targets='{b}', packing='none'))
  with pytest.raises(ConfigError, match='bits_per_byte'):
    config(tmp_path, stop=dict(target='bits_per_byte < 1', tokens=10 ** 6))


# --- Entries that leave a part out ------------------------------------------------------------------


def parts_of(entry):
  return {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}


@pytest.mark.parametrize('part', ['name', 'architectures', 'keys', 'sentinels'])
def test_an_entry_without_a_part_is_an_error(part):
  rest = {name: value for name, value in parts_of(of_the_guide()).items() if name != part}
  with pytest.raises(Incomplete, match=rf'{part} is missing \(\w+'):
    Objective(**rest)


@pytest.mark.parametrize('part', ['make', 'sizes', 'one_row', 'style', 'ask'])
def test_a_pair_without_a_part_is_an_error(part):
  entry = of_the_guide()
  rest = {name: value for name, value in parts_of(entry.pair).items() if name != part}
  with pytest.raises(Incomplete, match=rf"the objective '{NAME}' is incomplete: pair.{part} is missing \(how "):
    dataclasses.replace(entry, pair=Pair(**rest))


@pytest.mark.parametrize('part', ['architecture', 'lengths', 'rows', 'style', 'styles', 'begins'])
def test_a_stack_without_a_part_is_an_error(part):
  entry = table.OBJECTIVES['causal']
  rest = {name: value for name, value in parts_of(entry.stack).items() if name != part}
  with pytest.raises(Incomplete, match=f'stack.{part} is missing'):
    dataclasses.replace(entry, stack=OneStack(**rest))


def test_a_mixture_without_a_part_is_an_error():
  rest = {name: value for name, value in parts_of(table.OBJECTIVES['ul2']).items() if name != 'ask'}
  with pytest.raises(Incomplete, match="'ul2' is incomplete: ask is missing"):
    spec.Mixture(**rest)


@pytest.mark.parametrize('changes, words', [
    (dict(pair=None), 'stack or pair is missing'),
    (dict(architectures=('decoder', 'encoder_decoder')), 'pair.two_rows is missing'),
    (dict(architectures=('decoder', 'encoder')), "architectures has 'encoder', for which neither"),
    (dict(architectures=('decodr',)), "'decodr', which does not exist"),
    (dict(by_chance=('encoder_decoder',)), 'by_chance has'),
    (dict(stack=table.OBJECTIVES['masked_lm'].stack), "stack makes rows for 'encoder'")])
def test_entries_that_contradict_themselves_are_errors(changes, words):
  with pytest.raises(Incomplete, match=re.escape(words)):
    dataclasses.replace(of_the_guide(), **changes)


def test_a_style_of_prompts_that_does_not_exist_is_an_error():
  entry = of_the_guide()
  with pytest.raises(Incomplete, match="pair.style is 'marked', which is no style"):
    dataclasses.replace(entry, pair=dataclasses.replace(entry.pair, style='marked'))


  stack = table.OBJECTIVES['causal'].stack
  with pytest.raises(Incomplete, match="stack.styles has 'marked', which is no style"):
    dataclasses.replace(table.OBJECTIVES['causal'], stack=dataclasses.replace(stack, styles=('document', 'marked')))
  with pytest.raises(Incomplete, match="the objective 'ul2' is incomplete: style_of_pairs is 'marked', which is no"):
    dataclasses.replace(table.OBJECTIVES['ul2'], style_of_pairs='marked')


def test_a_style_of_prompts_that_a_stack_does_not_list_is_an_error(tmp_path):
  entry = table.OBJECTIVES['causal']
  short = dataclasses.replace(entry, stack=dataclasses.replace(entry.stack, styles=('stream',)))
  with pytest.raises(Incomplete, match="writes prompts in the style 'document', which stack.styles lacks"):
    short.style(tiny.config(tmp_path))


@pytest.mark.parametrize('name', table.OBJECTIVES)
def test_entries_are_handed_the_keys_that_they_name(name):
  from t5like.config import base
  entry = table.OBJECTIVES[name]
  assert set(vars(entry.read(base().objective))) == set(entry.keys)
  assert entry.name == name and 'name' not in entry.keys
