"""Which objectives go with which architectures, vocabularies and lengths; what the errors say."""
import re

import pytest
from hypothesis import given, strategies as st

from t5like import config as config_lib
from t5like.config import base, stages
from t5like.errors import ConfigError
from t5like.objectives import lengths, spans, table


def config(*overrides, **sections):
  c = base()
  c.stop.tokens = 10_000_000
  c.data.seq_len = 128
  c.sample.prompts = ()
  for section, values in sections.items():
    c[section].update(values)
  config_lib.validate(c)
  return c


def refused(*words, **sections):
  with pytest.raises(ConfigError) as e:
    config(**sections)
  text = str(e.value)
  for word in words:
    assert word in text, (word, text)
  assert '\n' not in text or 'problems' in text


T5 = dict(name='encoder_decoder', position='relative')


def test_architectures_and_objectives():
  refused("model.name='encoder' cannot be trained on it", "objective.name='masked_lm'", model=dict(name='encoder'))
  refused("objective.name='masked_lm'", "Use model.name='encoder'", objective=dict(name='masked_lm'))
  refused("objective.name='causal'", "model.name='decoder'", model=T5)
  for name in table.trains('encoder_decoder'):
    if name == 'seq2seq':  # which needs templates: below
      continue
    config(objective=dict(name=name), vocabulary=dict(sentinels=128))
    config(objective=dict(name=name), model=T5, vocabulary=dict(sentinels=128))


def test_templates_and_seq2seq_go_together():
  refused('needs the texts of data.inputs and data.targets', 'summarize: {article}', model=T5,
          objective=dict(name='seq2seq'), data=dict(packing='best_fit'))
  refused("data.targets='{b}'", "only objective.name='seq2seq'", data=dict(inputs='{a}', targets='{b}'))
  refused("would cut examples", "'best_fit'", objective=dict(name='seq2seq'), data=dict(inputs='{a}', targets='{b}'))
  refused('there is no data.targets', objective=dict(name='seq2seq'), data=dict(inputs='{a}', packing='none'))
  config(model=T5, objective=dict(name='seq2seq'), data=dict(inputs='{a}', targets='{b}', packing='best_fit'))


def test_sentinels_suffice():
  refused('vocabulary.sentinels=6', 'needs 7 for its corrupted spans', 'objective.mean_span=3', 'data.seq_len=128',
          'at least 7', model=T5, objective=dict(name='span_corruption'), vocabulary=dict(sentinels=6))
  config(model=T5, objective=dict(name='span_corruption'), vocabulary=dict(sentinels=7))
  # UL2's X denoiser of spans of 3 at half density: 128 in rows of 512 (specs 1c, pitfall 2)
  refused('needs 128', model=T5, objective=dict(name='ul2'), data=dict(seq_len=512))
  config(model=T5, objective=dict(name='ul2'), data=dict(seq_len=512), vocabulary=dict(sentinels=128))
  refused('vocabulary.sentinels=0', 'for the mask', model=dict(name='encoder'), objective=dict(name='masked_lm'),
          vocabulary=dict(sentinels=0))
  refused('vocabulary.sentinels=1', 'the mask and <cls>', model=dict(name='encoder'), vocabulary=dict(sentinels=1),
          objective=dict(name='masked_lm', cls_sep=True))


def test_lengths_that_leave_no_room():
  refused('data.seq_len=2', 'no room', model=T5, objective=dict(name='span_corruption'), data=dict(seq_len=2))
  refused('data.target_len=10', 'have 29 targets', 'Use 29, or 0', model=T5, data=dict(target_len=10),
          objective=dict(name='span_corruption'))
  refused('longer than the table of learned positions, which holds 64', 'model.max_positions=128',
          model=dict(position='learned', max_positions=64))
  refused('holds 126', 'model.max_positions=130', model=dict(position='learned_from_2', max_positions=128))


def test_packing():
  refused('lengths under', 'change with every draw', objective=dict(name='iid_denoising'), model=T5,
          data=dict(packing='best_fit'))
  refused('data.append_eos=False', 'ends must be marked', data=dict(packing='best_fit', append_eos=False))
  refused('data.document_mask=False', data=dict(packing='best_fit', document_mask=False))
  config(data=dict(packing='best_fit'))


def test_encoders_fill_in_masks():
  encoder = dict(model=dict(name='encoder'), objective=dict(name='masked_lm'))
  refused('sample.prompts', "'abc' has no '<mask>'", sample=dict(prompts=('a<mask>', 'abc')), **encoder)
  config(sample=dict(prompts=('a<mask>',)), **encoder)


def test_mixtures():
  part = lambda **kwargs: dict(mixture=dict(a=dict(weight=3, data=dict(source='markov:4')), b=dict(**kwargs)))
  refused("data.mixture.b.objective.nam='causal'", 'Did you mean objective.name?',
          data=part(objective=dict(nam='causal')))
  refused('data.mixture.b.data.seq_len=9', 'belongs to the whole run', data=part(data=dict(seq_len=9)))
  refused('data.mixture.b.weight=-1', '0 or above', data=part(weight=-1))
  refused('data.mixture.b.x=1', 'weight, data and objective', data=part(x=1))
  refused('data.mixture.b: ', "data.source='x:'", data=part(data=dict(source='x:')))
  refused("data.mixture.b.objective.name='mlm'", 'masked_lm', data=part(objective=dict(name='mlm')))
  refused('data.mixture.b: ', "model.name='decoder' cannot be trained on it",
          data=part(objective=dict(name='masked_lm')))
  c = config(data=part(objective=dict(name='prefix_lm')))
  found = lengths.components(c)
  assert [(f.name, f.weight, f.config.objective.name, f.config.data.source) for f in found] == [
      ('a', 0.75, 'causal', 'markov:4'), ('b', 0.25, 'prefix_lm', 'python_docs')]


def test_denoisers_of_ul2():
  refused("'x y'", "'[S2S] 0.2 prefix'", model=T5, objective=dict(name='ul2', denoisers=('x y',)))
  c = config(model=T5, objective=dict(name='ul2'), data=dict(seq_len=512), vocabulary=dict(sentinels=128))
  found = lengths.components(c)
  assert [round(f.weight, 9) for f in found] == [0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1]
  assert [f.mode for f in found] == ['[NLU]'] * 2 + ['[S2S]'] + ['[NLG]'] * 4
  assert [lengths.of(f).raw for f in found] == [568, 588, 1020, 766, 908, 600, 1006]  # specs 1c; 2 x 510
  assert lengths.shapes(c).inputs == lengths.shapes(c).targets == 512
  shorter = [lengths.of(f, mode=3).raw for f in found]
  assert all(a < b for a, b in zip(shorter, [568, 588, 1020, 766, 908, 600, 1006]))


@pytest.mark.parametrize('metric', ['bits_per_byte < 1'])
def test_bits_per_byte_needs_a_causal_objective(metric):
  refused('bits_per_byte', "'causal'", objective=dict(name='prefix_lm'), stop=dict(target=metric))


def test_every_problem_names_a_key_and_a_remedy():
  with pytest.raises(ConfigError) as e:
    config(model=dict(name='encoder', head='scaled'), objective=dict(name='causal'))
  for line in str(e.value).split('\n')[1:] or [str(e.value)]:
    assert re.search(r'\w+\.\w+=', line) and 'Use ' in line


MIXED = dict(mixture=dict(web=dict(weight=3), code=dict()))


def weights(c):
  """[(tokens, weights of the components)] of stages."""
  return [(stage.tokens, [part.weight for part in lengths.components(stage.config)]) for stage in stages.of(c)]


def test_stages_of_a_mixture():
  ok = config(data=dict(MIXED, stages=dict(end=dict(tokens='2M', weights=dict(code=0)),
                                           start=dict(tokens=1000, weights=dict(web=1)))))
  assert weights(ok) == [(0, [0.25, 0.75]), (1000, [0.5, 0.5]), (2_000_000, [0.0, 1.0])]
  stage = lambda **changes: dict(MIXED, stages=dict(end=dict(dict(tokens='1M', weights=dict(web=1)), **changes)))
  refused("data.stages.end.tokens='soon'", 'needs a whole number above 0', data=stage(tokens='soon'))
  refused('data.stages.end.weights.wep: is no component', "Did you mean 'web'?", data=stage(weights=dict(wep=1)))
  refused('data.stages.end.weights.web=-1: must be a number, 0 or above', data=stage(weights=dict(web=-1)))
  refused('data.stages: from 1,000,000 tokens on all weights are 0', data=stage(weights=dict(web=0, code=0)))
  refused("write dict(tokens='10B', weights=dict(web=0.5))", data=stage(more=1))
  refused('data.stages.late.tokens=1000000: data.stages.end begins there too',
          data=dict(stage(), stages=dict(stage()['stages'], late=dict(tokens=1_000_000, weights=dict(web=2)))))
  refused('change weights of data.mixture, which is empty', data=dict(stages=stage()['stages']))
  refused('data.mixture: all weights are 0', data=dict(mixture=dict(web=dict(weight=0))))


def test_stages_of_denoisers_keep_their_shares():
  c = config(data=dict(MIXED, stages=dict(end=dict(tokens=10, weights=dict(code=1, web=1)))), model=T5,
             objective=dict(name='ul2'), vocabulary=dict(sentinels=128))
  (_, before), (_, after) = weights(c)
  assert len(before) == 14 and abs(sum(before[:7]) - 0.25) < 1e-9 and abs(sum(after[:7]) - 0.5) < 1e-9
  assert [round(x / before[0], 6) for x in before[:7]] == [round(x / after[0], 6) for x in after[:7]]


def test_rates_and_windows():
  refused('data.mixture_cap=5', "belong to data.mixture_rates='examples'", data=dict(mixture_cap=5))
  refused('data.mixture_temperature=2', data=dict(MIXED, mixture_temperature=2.0))
  for text in ('5', '5:', '9:3', 'a:b', '1:2:3'):
    refused(f"data.skip_rows='{text}'", "as in '128000:153600'", data=dict(skip_rows=text))
  assert lengths.skipped('5K:6K, 10:20,15:30') == [(10, 30), (5000, 6000)]


@given(st.integers(2, 700), st.integers(0, 300), st.floats(0.01, 0.99), st.floats(1, 40))
def test_the_most_text_that_fits_is_found_as_by_counting(inputs, targets, density, mean_span):
  fits = lambda i, t: i <= inputs and (not targets or t <= targets)
  n = 1
  while fits(*spans.span_lengths(n + 1, density, mean_span)):
    n += 1
  assert spans.span_raw(fits, density, mean_span) == (n if n > 1 else 0)


def test_lengths_of_long_rows_are_known_at_once():
  import time
  c = config(model=T5, objective=dict(name='span_corruption', mean_span=256.0), data=dict(seq_len=131_072))
  started = time.process_time()
  for _ in range(100):
    assert lengths.shapes(c).inputs == 131_072
  assert time.process_time() - started < 5
