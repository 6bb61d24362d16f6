"""Models of about ten million parameters, one of each architecture, for `benchmarks/step.py --compare`."""
import dataclasses

from t5like import config as config_lib
from t5like.config import base
from t5like.config_type import Config


@dataclasses.dataclass(frozen=True)
class Shape:
  """A model and its batch.

  name: of the architecture.
  layers: of each stack.
  width, heads, feed_forward, vocabulary: sizes.
  length: tokens of a row, of the encoder where there are two stacks.
  targets: tokens of the decoder's row, or predictions in a row of an encoder; 0: as many as there are tokens.
  rows: of the batch.
  """
  name: str
  layers: int
  feed_forward: int
  targets: int = 0
  width: int = 384
  heads: int = 6
  length: int = 256
  rows: int = 16
  vocabulary: int = 1024


SHAPES = dict(
    decoder=Shape('decoder', layers=6, feed_forward=1536),
    encoder_decoder=Shape('encoder_decoder', layers=4, feed_forward=1024, targets=64),
    encoder=Shape('encoder', layers=6, feed_forward=1536, targets=38),
)


def _common(shape: Shape) -> Config:
  c = base()
  c.data.update(source='markov:26', validation='tail', seq_len=shape.length, document_mask=False)
  c.vocabulary.size = shape.vocabulary
  c.sample.prompts = ()
  c.model.update(
      name=shape.name, num_layers=shape.layers, d_model=shape.width, num_heads=shape.heads, vocab_size=shape.vocabulary,
      d_ff=shape.feed_forward, max_positions=shape.length, dtype='float32')
  c.batch_size = shape.rows
  c.stop.tokens = 10 ** 9
  return c


def _gpt2(c: Config, shape: Shape) -> None:
  c.model.update(
      activation='gelu_tanh', norm='layernorm', norm_eps=1e-5, position='learned', tie_embeddings=True, use_bias=True,
      init='gpt2')


def _t5(c: Config, shape: Shape) -> None:
  c.objective.update(name='span_corruption')
  c.data.update(target_len=shape.targets, append_eos=False)
  c.model.update(position='relative', scale_attention=False, activation='geglu', init='t5')


def _bert(c: Config, shape: Shape) -> None:
  c.objective.update(name='masked_lm', masking='bert', predictions=shape.targets)
  c.model.update(
      block='post_norm', embed_norm=True, position='learned', num_types=2, head='mlm', tie_embeddings=True,
      norm='layernorm', norm_eps=1e-12, use_bias=True, activation='gelu', init='bert')


KINDS = dict(decoder=_gpt2, encoder_decoder=_t5, encoder=_bert)


def config_of(name: str) -> Config:
  """The resolved config of a shape: GPT-2's, T5 v1.1's or BERT's architecture."""
  shape = SHAPES[name]
  c = _common(shape)
  KINDS[name](c, shape)
  config_lib.validate(c)
  return config_lib.resolve(c)
