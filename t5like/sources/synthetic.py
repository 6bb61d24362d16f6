"""Synthetic text, whose best possible loss is known."""
import bisect
from collections.abc import Callable
from typing import Any

import numpy as np

from t5like.errors import ConfigError
from t5like.sources.source import Records, Request, Source

LETTERS = 'abcdefghijklmnopqrstuvwxyz'
SYNTHETIC_LENGTH = 2_000_000  # letters
TASK_DOCUMENTS = 20_000
TASK_SHORTEST = 4  # letters of the inputs of a task
TASK_LONGEST = 16


def _number_of_letters(request: Request) -> int:
  argument = request.argument
  if not argument.isdecimal() or not 2 <= int(argument) <= len(LETTERS):
    raise ConfigError(f'data.source={request.name!r}: the number after the colon must be 2 to 26.')
  return int(argument)


def markov(request: Request) -> Source:
  """Letters of a Markov chain with this many states; see `markov_entropy`."""
  states = _number_of_letters(request)

  def read(item: int) -> Records:
    transitions = markov_transitions(states)
    cumulative = np.cumsum(transitions, axis=1).tolist()
    random = np.random.RandomState(1)
    draws = random.random_sample(SYNTHETIC_LENGTH)
    last = states - 1
    letters = []
    state = 0
    for draw in draws.tolist():
      place = bisect.bisect(cumulative[state], draw)
      state = min(place, last)
      letters.append(LETTERS[state])
    yield dict(text=''.join(letters)), request.name

  return _synthetic(request.name, read)


def _synthetic(name: str, read: Callable[[Any], Records]) -> Source:
  """A single text of SYNTHETIC_LENGTH letters."""
  return Source(
      name,
      items=range(1),
      read=read,
      num_bytes=SYNTHETIC_LENGTH,
      fingerprint=dict(length=SYNTHETIC_LENGTH),
      licence='generated',
  )


def markov_transitions(states: int) -> np.ndarray:
  """Returns float64 [states, states]: row i holds the probabilities of the letters after letter i."""
  # RandomState: its stream of numbers is the same in every version of NumPy.
  concentration = np.full(states, 0.5)
  random = np.random.RandomState(states)
  return random.dirichlet(concentration, size=states)


def markov_entropy(states: int) -> float:
  """Returns the entropy of `markov:STATES` in nats per symbol: the lowest possible nll."""
  rows = markov_transitions(states)
  values, vectors = np.linalg.eig(rows.T)
  largest = np.argmax(np.real(values))  # the eigenvalue 1
  stationary = np.real(vectors[:, largest])
  stationary = stationary / stationary.sum()
  logs = np.log(np.where(rows > 0, rows, 1))
  information = (rows * logs).sum(axis=1)
  return float(-stationary @ information)


def iid(request: Request) -> Source:
  """Letters drawn uniformly and independently: no model can do better than log(SYMBOLS) nats per letter."""
  symbols = _number_of_letters(request)

  def read(item: int) -> Records:
    random = np.random.RandomState(2)
    draws = random.randint(0, symbols, SYNTHETIC_LENGTH)
    codes = (draws + ord('a')).astype(np.uint8)
    text = codes.tobytes().decode()
    yield dict(text=text), request.name

  return _synthetic(request.name, read)


def task(request: Request) -> Source:
  """`copy` and `reverse`: inputs abc with targets abc or cba; the text abc>abc or abc>cba."""
  symbols = _number_of_letters(request)
  random = np.random.RandomState(0)
  lengths = random.randint(TASK_SHORTEST, TASK_LONGEST + 1, TASK_DOCUMENTS)
  letters = random.randint(0, symbols, (TASK_DOCUMENTS, TASK_LONGEST))
  is_reverse = request.name.startswith('reverse')

  def read(i: int) -> Records:
    numbers = letters[i, :lengths[i]]
    inputs = ''.join(LETTERS[k] for k in numbers)
    targets = inputs
    if is_reverse:
      targets = inputs[::-1]
    text = f'{inputs}>{targets}'
    record = dict(inputs=inputs, targets=targets, text=text)
    yield record, f'{request.name}#{i}'

  size = 2 * lengths.sum() + TASK_DOCUMENTS
  fingerprint = dict(documents=TASK_DOCUMENTS)
  return Source(request.name, range(TASK_DOCUMENTS), read, size, fingerprint, 'generated')
