"""How many tokens objectives take and give: arithmetic of configs alone, before any data is there.

A config may ask for several datasets and objectives at once; `components` lists them, each as a
config of its own.
"""
import dataclasses
import fractions
import math
import re
from typing import Any

from t5like.errors import ConfigError

# Objectives that turn a text into two, inputs and targets, for an encoder and a decoder, or for a
# decoder that reads one after the other.
PAIRS = ('span_corruption', 'iid_denoising', 'mass', 'bert_style', 'deshuffling', 'drop', 'lm', 'seq2seq')
BY_CHANCE = ('iid_denoising', 'drop', 'prefix_lm')  # lengths depend on the draw


@dataclasses.dataclass(frozen=True)
class Component:
  """One dataset with one objective; `weight` is its share of rows, all weights together being 1.

  `config` has no mixture and no 'ul2' any more; `mode` is text that goes before inputs ('' for none).
  """
  name: str
  weight: float
  config: Any
  mode: str = ''


def components(config, weights=()):
  """All components of a config, a plain one being its own only component. Raises ConfigError.

  `weights`: a dict of the mixture's names, whose weights take the place of the config's.
  """
  weights_of = lambda name: {'weight': weights[name]} if name in weights else {}
  mixed = [(name, float({'weight': 1, **parts, **weights_of(name)}['weight']), _changed(config, parts))
           for name, parts in config.data.mixture.to_dict().items()] or [('', 1.0, config)]
  found = []
  for name, weight, part in mixed:
    if part.objective.name != 'ul2':
      found.append(Component(name, weight, part))
      continue
    denoisers = [parse_denoiser(text) for text in part.objective.denoisers]
    rates = sum(rate for _, rate, _ in denoisers)
    for text, (mode, rate, objective) in zip(part.objective.denoisers, denoisers):
      found.append(Component(f'{name} {text}'.strip(), weight * rate / rates,
                             _changed(part, dict(objective=objective)), mode))
  total = sum(c.weight for c in found) or 1  # all 0 is refused by objective_rules
  return [dataclasses.replace(c, weight=c.weight / total) for c in found]


def stages(config):
  """[(tokens, [weight of each component])]: from so many tokens on, these are the weights. Raises ConfigError."""
  changed, found = {}, [(0, [c.weight for c in components(config)])]
  given = [(whole_number(str(stage['tokens'])), stage['weights']) for stage in config.data.stages.to_dict().values()]
  for tokens, weights in sorted(given, key=lambda stage: stage[0]):
    changed.update(weights)
    found.append((tokens, [c.weight for c in components(config, changed)]))
  return found


def skipped(text):
  """[(start, stop)], sorted and disjoint, of 'start:stop,start:stop' in rows. Raises ConfigError."""
  found = []
  for window in filter(None, (part.strip() for part in text.split(','))):
    ends = [whole_number(end) for end in window.split(':')]
    if len(ends) != 2 or None in ends or not 0 <= ends[0] < ends[1]:
      raise ConfigError(f"data.skip_rows={text!r}: {window!r} is no window of rows. Write the first row and the one "
                        "after the last, as in '128000:153600' or '128K:154K'.")
    found.append(tuple(ends))
  return merged(found)


def merged(windows):
  """Pairs (start, stop), sorted, those that touch made one."""
  found = []
  for start, stop in sorted(map(tuple, windows)):
    if found and start <= found[-1][1]:
      found[-1] = (found[-1][0], max(stop, found[-1][1]))
    else:
      found.append((start, stop))
  return found


def whole_number(text):
  """12000 from '12_000', '12K' or '1.2e4'; None when a text is no whole number."""
  m = re.fullmatch(r'([+-]?[0-9_.]*[0-9](?:e[+-]?[0-9]{1,2})?)\s*([kmbt]?)', text.strip().lower())
  try:
    n = fractions.Fraction(m[1].replace('_', '')) * 1000 ** ' kmbt'.index(m[2] or ' ')
  except (TypeError, ValueError):
    return None
  return int(n) if n.denominator == 1 else None


def _changed(config, parts):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.data.mixture, config.data.stages = {}, {}
    for section in ('data', 'objective'):
      config[section].update(parts.get(section, {}))
  return config


def parse_denoiser(text):
  """(mode, rate, changes of config.objective) of '[NLU] 0.2 3 0.15' or '[S2S] 0.2 prefix'."""
  words = text.split()
  mode = words.pop(0) if words and not _number(words[0]) else ''
  if len(words) == 2 and words[1] == 'prefix' and _number(words[0]) > 0:
    return mode, float(words[0]), dict(name='prefix_lm')
  numbers = [_number(w) for w in words]
  if len(numbers) == 3 and all(numbers) and min(numbers) > 0 and numbers[1] >= 1 and numbers[2] < 1:
    return mode, numbers[0], dict(name='span_corruption', mean_span=numbers[1], noise_density=numbers[2])
  raise ConfigError(f"objective.denoisers: {text!r} is none. Write mode, rate, mean span and density, as in "
                    "'[NLU] 0.2 3 0.15', or '[S2S] 0.2 prefix'; the mode may be left out.")


def _number(text):
  try:
    value = float(text)
    return value if math.isfinite(value) else 0.0
  except ValueError:
    return 0.0


def span_counts(n, density, mean_span):
  """(corrupted tokens, spans) of n tokens, rounded half to even in double precision.

  T5's random_spans_noise_mask (Raffel et al. 2020, section 3.3.4), which rounds in single precision
  and then disagrees with its own random_spans_helper at some lengths, such as 190.
  """
  n = max(n, 2)
  noise = min(max(round(n * density), 1), n - 1)
  return noise, min(max(round(noise / mean_span), 1), n - noise)


def span_lengths(n, density, mean_span):
  """(inputs, targets) of n tokens with corrupted spans, the end of each included."""
  noise, spans = span_counts(n, density, mean_span)
  return n - noise + spans + 1, noise + spans + 1


def span_raw(fits, density, mean_span):
  """The most tokens n whose `span_lengths` satisfy `fits(inputs, targets)`; 0 if there are none.

  Both lengths grow with n, or stay, so that n is found by halving: long rows are asked for again and again.
  """
  is_fit = lambda n: fits(*span_lengths(n, density, mean_span))
  least, most = 1, 2  # the largest n known to fit, or 1; and one that may not
  while is_fit(most):
    least, most = most, 2 * most
  while most - least > 1:
    middle = (least + most) // 2
    if is_fit(middle):
      least = middle
    else:
      most = middle
  return least if least > 1 else 0


def likely(n, density, deviations=5):
  """How many of n tokens a chance of `density` each takes at most: the mean and some standard deviations."""
  return min(n, math.ceil(n * density + deviations * math.sqrt(n * density * (1 - density))))


@dataclasses.dataclass(frozen=True)
class Lengths:
  """raw: most tokens of text in an example (concat_split: exactly so many); rows of a batch hold
  `inputs` tokens of the encoder (0 without one), `targets` of the decoder (or of the only stack), and
  `predictions` of a masked LM (0: all positions predict); `spans`: most sentinels in an example.
  """
  raw: int
  inputs: int
  targets: int
  predictions: int = 0
  spans: int = 0


def of(component, mode=0):
  """Lengths of a Component whose mode token takes `mode` tokens of its inputs."""
  c = component.config
  o, T, architecture = c.objective, c.data.seq_len, c.model.name
  if architecture == 'encoder':
    return Lengths(T - 2 * o.cls_sep, 0, T, _predictions(o, T))
  if architecture == 'decoder':
    return _decoder(o, c.data, T, mode, pair=bool(component.mode))
  return _encoder_decoder(o, c.data, T - mode, mode)


def _predictions(o, T):
  most = {'bert': max(1, round(T * o.noise_density)), 'roberta': int(T * o.noise_density) + 1,
          'bernoulli': likely(T, o.noise_density)}[o.masking]
  return min(o.predictions or most, most)


def _decoder(o, data, T, mode, pair):
  if o.name == 'causal':
    return Lengths(T if data.document_mask else T + 1, 0, T)
  if o.name == 'prefix_lm' and not pair:
    return Lengths(T, 0, T)
  room = T - mode
  if o.name == 'span_corruption':
    raw = span_raw(lambda i, t: i + t + o.roll <= room, o.noise_density, o.mean_span)
    return Lengths(raw, 0, T, spans=span_counts(raw, o.noise_density, o.mean_span)[1] + o.roll)
  whole = o.name in ('mass', 'bert_style', 'deshuffling')  # the targets are all of the text
  raw = (room - 2) // 2 if whole else room - 2
  if o.name == 'iid_denoising':  # inputs and targets both hold the sentinels
    while raw > 0 and raw + 2 * likely(raw, _starts(o)) + 2 > room:
      raw -= 1
    return Lengths(raw, 0, T, spans=likely(raw, _starts(o), 3))
  return Lengths(raw, 0, T)


def _encoder_decoder(o, data, S, mode):
  """`S`: what is left of the encoder's row after the mode token."""
  inputs, T = S + mode, data.target_len
  if o.name == 'span_corruption':
    # A mask that is rolled may cut a span in two, which adds a sentinel to one side or the other.
    raw = span_raw(lambda i, t: i + o.roll <= S and (not T or t + o.roll <= T), o.noise_density, o.mean_span)
    if not T and o.noise_density == 0.5 and span_lengths(raw, 0.5, o.mean_span)[1] > S:
      raw -= 1  # as T5's random_spans_helper: no longer targets than inputs at a half
    targets = span_lengths(raw, o.noise_density, o.mean_span)[1] + o.roll
    return Lengths(raw, inputs, T or targets, spans=span_counts(raw, o.noise_density, o.mean_span)[1] + o.roll)
  if o.name == 'prefix_lm':  # two texts of L tokens: together their prefixes take L, their rests L
    half = min(S - mode, T or S) - 2
    return Lengths(2 * half, inputs, T or S)
  if o.name == 'iid_denoising':
    raw = S - 1
    targets = likely(raw, o.noise_density) + likely(raw, _starts(o)) + 1
    return Lengths(raw, inputs, T or min(targets, S), spans=likely(raw, _starts(o), 3))
  if o.name == 'drop':
    return Lengths(S - 1, inputs, T or min(likely(S - 1, o.noise_density) + 1, S))
  if o.name in ('mass', 'bert_style', 'deshuffling'):
    return Lengths(min(S, T or S) - 1, inputs, T or S)
  return Lengths((T or S) - 1, inputs, T or S)  # lm, seq2seq


def _starts(o):
  """Chance that a run of corrupted tokens begins at a token."""
  return o.noise_density * (1 - o.noise_density)


def shapes(config):
  """Lengths of the rows of a batch of a config: the longest of its components; `raw` is the most."""
  all_of = [of(c) for c in components(config)]
  return Lengths(*(max(getattr(n, f.name) for n in all_of) for f in dataclasses.fields(Lengths)))
