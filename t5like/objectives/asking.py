"""How models of pairs (inputs, targets) are asked for the probability of an answer.

A question is three texts, as ids: what stands before the answer, the answer, and what stands after it. Each way puts
them into inputs and targets as training did.
"""
import dataclasses
from collections.abc import Callable, Sequence

Ids = Sequence[int]
Sentinel = Callable[[int], int]  # the id of <extra_id_k>
Prompt = tuple[list[int], list[int]]  # lead, source


@dataclasses.dataclass(frozen=True)
class Question:
  """Where the texts of a question stand. The targets are `begin`, `known` and the answer.

  Attributes:
    source: ids of the inputs, which lose their beginning where a row is too short.
    lead: ids before `source`, which are never cut.
    begin: ids that the targets begin with, which are never cut.
    known: text of the targets before the answer, which loses its beginning where a row is too short.
  """
  source: list[int]
  lead: tuple[int, ...] = ()
  begin: tuple[int, ...] = ()
  known: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Asking:
  """A way of asking.

  Attributes:
    name: of the way.
    question: makes the Question of (before, answer, after, sentinel).
    prompt: makes (lead, source) of (before, after, sentinel), the inputs of a model that generates the answer.
    in_inputs, in_targets: how many tokens it adds to either at most, ends not counted.
    twice: whether inputs and targets both hold the text before the answer.
  """
  name: str
  question: Callable[[Ids, Ids, Ids, Sentinel], Question]
  prompt: Callable[[Ids, Ids, Sentinel], Prompt]
  in_inputs: int = 1
  in_targets: int = 1
  twice: bool = False

  @property
  def added(self) -> int:
    """Tokens that a question takes in a row beside its texts, the end of the inputs included."""
    return 1 + self.in_inputs + self.in_targets


@dataclasses.dataclass(frozen=True)
class CannotBeAsked:
  """In the place of an Asking; why: 'a model of this objective ..'."""
  why: str


def _in_place(
    before: Ids,
    answer: Ids,
    after: Ids,
    sentinel: Sentinel,
) -> Question:
  hole = sentinel(0)
  source = [*before, hole, *after]
  return Question(source, begin=(hole,))


def _prompt_in_place(before: Ids, after: Ids, sentinel: Sentinel) -> Prompt:
  hole = sentinel(0)
  return [], [*before, hole, *after]


def _inputs(
    before: Ids,
    answer: Ids,
    after: Ids,
    sentinel: Sentinel,
) -> Question:
  return Question([*before, *after])


def _prompt_inputs(before: Ids, after: Ids, sentinel: Sentinel) -> Prompt:
  return [], [*before, *after]


def _corrupted(
    before: Ids,
    answer: Ids,
    after: Ids,
    sentinel: Sentinel,
) -> Question:
  hole = [sentinel(0)] * len(answer)
  source = [*before, *hole, *after]
  return Question(source, known=tuple(before))


def _targets_alone(
    before: Ids,
    answer: Ids,
    after: Ids,
    sentinel: Sentinel,
) -> Question:
  return Question([], known=tuple(before))


# A sentinel stands for the answer in the inputs, and the targets say what it is.
SENTINEL = Asking('sentinel', _in_place, _prompt_in_place)
# `before` and `after` are the inputs, the answer the targets.
INPUTS = Asking('inputs', _inputs, _prompt_inputs)
# Targets are the whole text, of which the inputs hold all but the answer.
CORRUPTED = Asking('all', _corrupted, _prompt_inputs, twice=True)
# Targets are the whole text; there are no inputs.
TARGETS_ALONE = Asking('all', _targets_alone, _prompt_inputs, twice=True)
