"""Arithmetic of corrupted spans: how many tokens of text give how many tokens of inputs and of targets."""
import math
from collections.abc import Callable


def span_counts(n: int, density: float, mean_span: float) -> tuple[int, int]:
  """(corrupted tokens, spans) of n tokens, rounded half to even in double precision.

  T5's random_spans_noise_mask (Raffel et al. 2020, section 3.3.4), which rounds in single precision
  and then disagrees with its own random_spans_helper at some lengths, such as 190.
  """
  n = max(n, 2)
  noise = max(round(n * density), 1)
  noise = min(noise, n - 1)
  spans = max(round(noise / mean_span), 1)
  spans = min(spans, n - noise)
  return noise, spans


def span_lengths(n: int, density: float, mean_span: float) -> tuple[int, int]:
  """(inputs, targets) of n tokens with corrupted spans, the end of each included."""
  noise, spans = span_counts(n, density, mean_span)
  kept = n - noise
  inputs = kept + spans + 1
  targets = noise + spans + 1
  return inputs, targets


def span_raw(
    fits: Callable[[int, int], bool],
    density: float,
    mean_span: float,
) -> int:
  """The most tokens n whose `span_lengths` satisfy `fits(inputs, targets)`; 0 if there are none."""

  def is_fit(n: int) -> bool:
    inputs, targets = span_lengths(n, density, mean_span)
    return fits(inputs, targets)

  return largest(is_fit)


def largest(is_fit: Callable[[int], bool]) -> int:
  """The most tokens n >= 2 that fit, where all below n do too; 0 if two do not.

  Found by halving: long rows are asked for again and again.
  """
  least = 1  # the largest n known to fit, or 1
  most = 2  # one that may not
  while is_fit(most):
    least = most
    most = 2 * most
  while most - least > 1:
    middle = (least + most) // 2
    if is_fit(middle):
      least = middle
    else:
      most = middle
  if least < 2:
    return 0
  return least


def likely(n: int, density: float, deviations: float = 5) -> int:
  """How many of n tokens a chance of `density` each takes at most: the mean and some standard deviations."""
  mean = n * density
  variance = n * density * (1 - density)
  deviation = math.sqrt(variance)
  most = math.ceil(mean + deviations * deviation)
  return min(n, most)


def run_starts(density: float) -> float:
  """Chance that a run of tokens, each corrupted with a chance of `density`, begins at a token."""
  return density * (1 - density)
