"""A model that is evaluated: it scores answers, and makes or fills in text."""
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from t5like import sharding
from t5like.config_type import Config
from t5like.decoding import decode, masks
from t5like.evals import ask, score
from t5like.model import transformer
from t5like.model.transformer import Model
from t5like.objectives import lengths
from t5like.vocabulary.kinds import Vocabulary

TOKENS_AT_ONCE = 4096  # of prompts and answers that are decoded together, per piece of the batch
Ids = list[int]


@dataclasses.dataclass
class Subject:
  """What is evaluated.

  Attributes:
    model: a `t5like.model.transformer` model.
    params: nested dict of arrays on `mesh`.
    vocabulary: of the model.
    config: of its run.
    mesh: that the parameters lie on.
    tick: called after each batch.
    scorer: of the same.
  """
  model: Model
  params: Any
  vocabulary: Vocabulary
  config: Config
  mesh: jax.sharding.Mesh
  tick: Callable[[], None] = score.no_tick
  scorer: score.Scorer = dataclasses.field(init=False)

  def __post_init__(self) -> None:
    self.scorer = score.Scorer(
        self.model,
        self.params,
        self.vocabulary,
        self.config,
        self.mesh,
        self.tick,
    )

  def generate(
      self,
      prompts: Sequence[Ids],
      tokens: int,
      until: Sequence[str] = (),
      style: str | None = None,
      context: int = 0,
  ) -> list[str]:
    """The likeliest answers to prompts, greedily, decoded in batches of few shapes.

    Args:
      prompts: lists of ids.
      tokens: of each answer, at most.
      until: texts of which one in each answer of a batch ends that batch; what follows them may be there or not.
      style: how prompts are taken, see `decode.stream`; as in training by default.
      context: the longest row; that of training by default.

    Returns:
      A text for each prompt.
    """
    context = context or self.config.data.seq_len
    options: dict[str, Any] = dict(
        style=style or decode.style_of(self.config),
        targets=lengths.shapes(self.config).targets,
        context=context,
        tokens=tokens,
        temperature=0.0,
    )
    widths = [ask.width(len(prompt) + 2, context) for prompt in prompts]
    model, params, mesh = self._for_decoding()
    shards = sharding.batch_shards(mesh)
    texts_of = [''] * len(prompts)
    for numbers in _batches(widths, tokens, shards):
      rows = [prompts[number] for number in numbers]
      texts: list[str] = []
      with jax.set_mesh(mesh):
        stream = decode.stream(
            model,
            params,
            self.vocabulary,
            rows,
            **options,
        )
        for texts in stream:
          if _all_ended(texts, until):
            break
      self.tick()
      for number, text in zip(numbers, texts):
        texts_of[number] = text
    return texts_of

  def fill(self, rows: Sequence[Ids]) -> list[Ids]:
    """Lists of ids whose masks are filled in."""
    model, params, mesh = self._for_decoding()
    is_framed = self.scorer.asker.style.framed
    filled: list[Ids] = []
    for start in range(0, len(rows), score.ROWS):
      batch = rows[start:start + score.ROWS]
      with jax.set_mesh(mesh):
        filled += masks.fill(
            model,
            params,
            self.vocabulary,
            batch,
            is_framed,
        )
      self.tick()
    return filled

  def _for_decoding(self) -> tuple[Any, Any, jax.sharding.Mesh]:
    """(model, params, mesh): tokens come one by one, so no axis can cut a row."""
    mesh = sharding.without_context(self.mesh)
    if mesh is self.mesh:
      return self.model, self.params, mesh
    with jax.set_mesh(mesh):
      model = _built(self.model.config, mesh)

      def init() -> Any:
        return model.init(jax.random.key(0))

      abstract = sharding.abstract(init, mesh)
      params = jax.tree.map(_placed_like, self.params, abstract)
      return model, params, mesh


def _placed_like(array: jax.Array, like: Any) -> jax.Array:
  return jax.device_put(array, like.sharding)


def _batches(
    widths: Sequence[int],
    tokens: int,
    shards: int,
) -> Iterable[list[int]]:
  """Numbers of prompts that are decoded together: those of one width, the smallest first.

  Args:
    widths: of each prompt.
    tokens: of an answer.
    shards: pieces that the mesh cuts batches into.
  """
  members: dict[int, list[int]] = {}
  for number, width in enumerate(widths):
    members.setdefault(width, []).append(number)
  for width, numbers in sorted(members.items()):
    fitting = TOKENS_AT_ONCE // (width + tokens)
    rows = max(1, min(score.ROWS, fitting))
    size = rows * shards
    for start in range(0, len(numbers), size):
      yield numbers[start:start + size]


@functools.lru_cache(4)
def _built(config: transformer.ModelConfig, mesh: jax.sharding.Mesh) -> Any:
  """The same model each time, as programs are compiled anew for another."""
  return transformer.build(config)


def _all_ended(texts: Sequence[str], until: Sequence[str]) -> bool:
  """Whether each text holds one of the texts `until`."""
  for text in texts:
    if ended(text, until) == text:
      return False
  return True


def ended(text: str, until: Iterable[str]) -> str:
  """A text up to the first of the texts `until`."""
  end = len(text)
  for stop in until:
    position = text.find(stop)
    if stop and position >= 0:
      end = min(end, position)
  return text[:end]
