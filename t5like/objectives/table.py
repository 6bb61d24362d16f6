"""The table of objectives: config.objective.name is a key of it. All that depends on an objective is in its entry."""
from typing import Any

from t5like.objectives import mixtures, one_stack, pairs
from t5like.objectives.spec import Mixture, Objective

OBJECTIVES: dict[str, Objective | Mixture] = {entry.name: entry for entry in (
    one_stack.CAUSAL, pairs.PREFIX_LM, one_stack.MASKED_LM, pairs.SPAN_CORRUPTION, pairs.IID_DENOISING, pairs.MASS,
    pairs.BERT_STYLE, pairs.DESHUFFLING, pairs.DROP, pairs.LM, mixtures.UL2, pairs.SEQ2SEQ)}


def of(config: Any) -> Any:
  """The entry of a config's objective."""
  return OBJECTIVES[config.objective.name]


def trains(architecture: str) -> list[str]:
  """Names of the objectives on which an architecture can be trained."""
  return [name for name, entry in OBJECTIVES.items() if architecture in entry.architectures]
