"""The names that keys of a config may have, and the facts about each that rules and readers of configs ask for.

There is no JAX here, since configs are checked before it starts. The functions and modules behind the names are in
tables of their own, each beside the code that calls them and each compared with its names by `implement` when it is
imported: a name without an implementation is an error then, never the behaviour of another name.
"""
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from t5like import rate_schedules

Implementation = TypeVar('Implementation')


def implement(
    key: str,
    names: Collection[str],
    implementations: Mapping[str, Implementation],
    agree: Callable[[Any, Implementation], bool] | None = None,
) -> Mapping[str, Implementation]:
  """Returns the implementations of the names that a config key may have.

  Args:
    key: of a config, such as 'model.norm'.
    names: its choices, one of the tables below.
    implementations: what computes each of them, by name.
    agree: whether the facts of a name and its implementation agree, where that can be seen.

  Raises:
    NotImplementedError: a name has no implementation, an implementation no name, or the two do not agree.
  """
  missing = [name for name in names if name not in implementations]
  if missing:
    raise NotImplementedError(f'{key}={missing[0]!r} is a choice in t5like/choices.py, but nothing implements it.')
  unnamed = [name for name in implementations if name not in names]
  if unnamed:
    raise NotImplementedError(f'{key}={unnamed[0]!r} is implemented, but it is no choice in t5like/choices.py.')
  if agree is not None:
    if not isinstance(names, Mapping):
      raise TypeError(f'{key}: its names have no facts in t5like/choices.py that implementations could agree with.')
    for name, implementation in implementations.items():
      if not agree(names[name], implementation):
        raise NotImplementedError(f'{key}={name!r} is not implemented as t5like/choices.py says: {names[name]}.')
  return implementations


# --- Data -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Packing:
  """Which texts share a row.

  windows: rows are windows of all documents joined, which begin and end anywhere in them; otherwise a row holds whole
    texts, whose ends have to be marked.
  planned: which texts share a row is planned from their lengths, so these must be known.
  """
  windows: bool = False
  planned: bool = False


PACKINGS = dict(
    concat_split=Packing(windows=True),
    best_fit=Packing(planned=True),
    none=Packing(),
)
EMPTY = ('drop', 'error')
OVERLONG = ('truncate', 'drop', 'error')


@dataclasses.dataclass(frozen=True)
class MixtureRates:
  """by_examples: rates depend on how many examples each dataset has, which only the prepared data tells."""
  by_examples: bool


MIXTURE_RATES = dict(
    weights=MixtureRates(by_examples=False),
    examples=MixtureRates(by_examples=True),
)

# What follows the kind in data.source: nothing, any text, or a number of letters of the alphabet.
SOURCES = {'python_docs': '', 'python_functions': '', 'shakespeare': '', 'text': 'GLOB', 'jsonl': 'GLOB',
           'parquet': 'GLOB', 'tfds': 'NAME', 'markov': 'STATES', 'iid': 'SYMBOLS', 'copy': 'SYMBOLS',
           'reverse': 'SYMBOLS'}

VOCABULARIES = ('sentencepiece', 'bytes', 'characters', 'huggingface')
ALGORITHMS = ('unigram', 'bpe')


@dataclasses.dataclass(frozen=True)
class Normalization:
  """keeps_spaces: spaces and newlines come back exactly as they were."""
  keeps_spaces: bool


NORMALIZATIONS = dict(
    nmt_nfkc=Normalization(keeps_spaces=False),
    identity=Normalization(keeps_spaces=True),
)


# --- Objective ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Masking:
  """How tokens are masked.

  any_id: random ids that are read in place of tokens are from all of the vocabulary; else special ones are left out.
  words_alike: all pieces of a whole word are read alike: as the mask, as random ids or as they are.
  """
  any_id: bool = True
  words_alike: bool = False


MASKINGS = dict(
    bert=Masking(),
    roberta=Masking(any_id=False, words_alike=True),
    bernoulli=Masking(),
)

# --- Model ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Architecture:
  """causal: tokens that are predicted see only what comes before; has_encoder: they also see an encoder's output."""
  causal: bool
  has_encoder: bool = False

  @property
  def decoder_only(self) -> bool:
    """Whether one stack reads the text and predicts what follows."""
    return self.causal and not self.has_encoder

  @property
  def rows(self) -> tuple[bool, bool]:
    """What its rows are like; objectives make rows for all architectures of the same."""
    return self.causal, self.has_encoder


ARCHITECTURES = dict(
    decoder=Architecture(causal=True),
    encoder=Architecture(causal=False),
    encoder_decoder=Architecture(causal=True, has_encoder=True),
)


@dataclasses.dataclass(frozen=True)
class Block:
  """Where the norms of a block are, f being its attention or MLP: in exactly one of the first three places.

  norm_input: x + f(norm(x)).
  norm_output: x + norm(f(x)); with norm_input, x + norm(f(norm(x))) with two norms.
  norm_sum: norm(x + f(x)); the output of the last block has a norm already.
  parallel: attention and MLP both read the input of the block.
  bare_first: attention of the first layer reads the input of the stack without a norm, which has one already.
  """
  norm_input: bool = False
  norm_output: bool = False
  norm_sum: bool = False
  parallel: bool = False
  bare_first: bool = False

  def __post_init__(self):
    if self.bare_first and not self.norm_input:
      raise ValueError(f'{self}: what its parts read has no norm that the first layer could do without.')
    if self.norm_sum == (self.norm_input or self.norm_output):
      raise ValueError(f'{self}: a block has norms either of sums, or of what its parts read or write.')

  @property
  def has_two(self) -> bool:
    """Whether each part has a norm before it and another one after it."""
    return self.norm_input and self.norm_output


BLOCKS = dict(
    pre_norm=Block(norm_input=True),
    post_norm=Block(norm_sum=True),
    output_norm=Block(norm_output=True),
    sandwich=Block(norm_input=True, norm_output=True),
    parallel=Block(norm_input=True, parallel=True),
    bare_first=Block(norm_input=True, bare_first=True),
)


@dataclasses.dataclass(frozen=True)
class Activation:
  """gated: down(act(gate(x)) * up(x)) with three matrices (Shazeer 2020, arXiv 2002.05202); else down(act(up(x)))."""
  gated: bool


ACTIVATIONS = dict(
    swiglu=Activation(gated=True),
    geglu=Activation(gated=True),
    reglu=Activation(gated=True),
    glu=Activation(gated=True),
    bilinear=Activation(gated=True),
    geglu_exact=Activation(gated=True),
    gelu=Activation(gated=False),
    gelu_tanh=Activation(gated=False),
    relu=Activation(gated=False),
    swish=Activation(gated=False),
)


@dataclasses.dataclass(frozen=True)
class Norm:
  """scale: it multiplies by learned numbers; bias: it adds learned numbers, where model.use_bias is true.

  offset: what is added to the learned numbers before they multiply; they begin at 1 less that.
  """
  scale: bool
  bias: bool
  offset: float = 0.0


NORMS = dict(
    rmsnorm=Norm(scale=True, bias=False),
    rmsnorm_unit=Norm(scale=True, bias=False, offset=1.0),
    layernorm=Norm(scale=True, bias=True),
    layernorm_plain=Norm(scale=False, bias=False),
)


@dataclasses.dataclass(frozen=True)
class Position:
  """How a model knows the order of tokens; all of it may be false.

  embedded: a vector for each position is added to the embeddings of tokens.
  learned: these vectors are a table of model.max_positions rows, of which the first `first_row` are unused.
  rotary: queries and keys are rotated, by model.rope_theta and model.rope_fraction.
  biased: attention logits are biased by distance.
  per_layer: by numbers that each layer has for itself, and not the layers of a stack together.
  """
  embedded: bool = False
  learned: bool = False
  first_row: int = 0
  rotary: bool = False
  biased: bool = False
  per_layer: bool = False


POSITIONS = dict(
    rope=Position(rotary=True),
    learned=Position(embedded=True, learned=True),
    learned_from_2=Position(embedded=True, learned=True, first_row=2),
    relative=Position(biased=True),
    relative_per_layer=Position(biased=True, per_layer=True),
    sinusoidal=Position(embedded=True),
    scaled_sinusoidal=Position(embedded=True),
    none=Position(),
)


@dataclasses.dataclass(frozen=True)
class LayerKind:
  """What the attention of a layer to its own stack sees, and what it knows of positions.

  windowed: only keys in model.window around the query.
  rotated: queries and keys are rotated, if model.position is a scheme that rotates.
  own_theta: by model.local_rope_theta where that is not 0, and then without model.rope_scaling.
  """
  windowed: bool = False
  rotated: bool = True
  own_theta: bool = False


LAYERS = {
    'global': LayerKind(),
    'local': LayerKind(windowed=True, own_theta=True),
    'global_nope': LayerKind(rotated=False),
    'local_nope': LayerKind(windowed=True, rotated=False),
}
EMBED_SCALES = ('none', 'sqrt_d_model')


@dataclasses.dataclass(frozen=True)
class EncoderEmbed:
  """What the encoder of an encoder-decoder does not share with its decoder.

  tokens: the table of tokens.
  positions: the table of positions, and the norm of the sum of embeddings.
  """
  tokens: bool
  positions: bool


ENCODER_EMBEDS = dict(
    shared=EncoderEmbed(tokens=False, positions=False),
    own=EncoderEmbed(tokens=True, positions=False),
    own_positions=EncoderEmbed(tokens=False, positions=True),
)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Keys of model.rope_scaling beside `name`.

  required: numbers that it needs.
  optional: others, with their defaults; 0: what follows from the required ones.
  lists: of the required ones, those with a number for each pair of dimensions.
  """
  required: tuple[str, ...]
  optional: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  lists: tuple[str, ...] = ()


ROPE_SCALINGS = dict(
    linear=RopeScaling(('factor',)),
    dynamic=RopeScaling(('factor', 'original_positions')),
    yarn=RopeScaling(('factor', 'original_positions'), dict(
        attention_factor=0.0, beta_fast=32.0, beta_slow=1.0, mscale=0.0, mscale_all_dim=0.0, truncate=True)),
    llama3=RopeScaling(('factor', 'original_positions', 'low_freq_factor', 'high_freq_factor')),
    longrope=RopeScaling(('factor', 'original_positions', 'short_factor', 'long_factor'), dict(attention_factor=0.0),
                         lists=('short_factor', 'long_factor')),
)


@dataclasses.dataclass(frozen=True)
class Head:
  """What stands before and after the product with the vocabulary.

  transformed: a dense layer, the activation and a norm before it, an output bias after it; of encoders only.
  dense_bias: the dense layer has a bias.
  scaled: divided by sqrt(d_model) before it, which belongs to tied embeddings.
  """
  transformed: bool = False
  dense_bias: bool = True
  scaled: bool = False


HEADS = dict(
    linear=Head(),
    scaled=Head(scaled=True),
    mlm=Head(transformed=True),
    mlm_unbiased=Head(transformed=True, dense_bias=False),
)


@dataclasses.dataclass(frozen=True)
class QKNorm:
  """Dimensions over which queries and keys are normalised, in letters of t5like/sharding.py; '': they are not."""
  query: str
  key: str


QK_NORMS = dict(none=QKNorm('', ''), head=QKNorm('H', 'H'), all=QKNorm('NH', 'KH'))


@dataclasses.dataclass(frozen=True)
class AttentionSinks:
  """dims: of learned logits that join the softmax as those of a key without a value; '': there are none."""
  dims: str


ATTENTION_SINKS = dict(none=AttentionSinks(''), head=AttentionSinks('N'))


@dataclasses.dataclass(frozen=True)
class DropoutStyle:
  """shared: all positions of a row lose the same features; everywhere: also inside the MLP and after the last norm."""
  shared: bool
  everywhere: bool


DROPOUT_STYLES = dict(
    standard=DropoutStyle(shared=False, everywhere=False),
    t5=DropoutStyle(shared=True, everywhere=True),
)
INITS = ('fan_in', 'gpt2', 'bert', 't5', 'neox')
DTYPES = ('bfloat16', 'float32')


@dataclasses.dataclass(frozen=True)
class Quantization:
  """gaps: {objective: (mean, half of an interval of 95 %)}, the nats per predicted token by which the validation nll of
  small models on the built-in text was higher than in full precision (benchmarks/eight_bit.py, three seeds)."""
  gaps: Mapping[str, tuple[float, float]]


QUANTIZATIONS = dict(
    none=Quantization({}),
    int8=Quantization(dict(causal=(0.0008, 0.0054), span_corruption=(0.0032, 0.0091), masked_lm=(0.0065, 0.0481))),
    fp8=Quantization(dict(causal=(0.0018, 0.0154), span_corruption=(0.0039, 0.0200), masked_lm=(0.0146, 0.0978))),
)


@dataclasses.dataclass(frozen=True)
class Router:
  """normalized: what experts that were chosen for a token are multiplied by adds up to 1."""
  normalized: bool


ROUTERS = dict(
    softmax=Router(normalized=False),
    softmax_normalized=Router(normalized=True),
    sigmoid=Router(normalized=False),
    sigmoid_normalized=Router(normalized=True),
)
ATTENTION = ('auto', 'xla', 'splash', 'cudnn')
CONTEXT_ATTENTION = ('auto', 'gathered', 'ring')


@dataclasses.dataclass(frozen=True)
class Remat:
  """recomputed: the most of the forward pass that the backward pass computes again, as a share of all FLOPs."""
  recomputed: float


# Values that the forward pass names, and may save for the backward pass: attention's output, its queries, keys and
# values, what is between attention and MLP, the first products of the MLP, and gathered weights.
KEPT = ('context', 'qkv', 'middle', 'up', 'gate', 'weights')
# From the smallest memory to the shortest step. Only some models have each of these values: any of the choices may
# recompute all of the forward pass.
REMAT = dict(
    full=Remat(1 / 3),
    context=Remat(1 / 3),
    attention=Remat(1 / 3),
    middle=Remat(1 / 3),
    up=Remat(1 / 3),
    minimal=Remat(1 / 3),
    weights=Remat(1 / 3),
    none=Remat(0),
)


# --- Training -------------------------------------------------------------------------------------

SCHEDULES = rate_schedules.SCHEDULES  # plain arithmetic, so that facts and functions are one table
TRACKERS = ('tensorboard', 'wandb', 'mlflow')


# --- Weights of another architecture --------------------------------------------------------------

COPIED = 'copied'
FRESH = 'fresh'
ADAPTED = (COPIED, FRESH)
SAME = 'same'
ADAPT_SOURCES = (SAME, *ARCHITECTURES)
ADAPT_TOKENS = (SAME, 'matched')
