"""The model section of a config, with every size known."""
import dataclasses
from collections.abc import Mapping
from typing import Any

from t5like import choices
from t5like.config.resolved import is_sparse


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """`config.model`, with every size known. Keys are explained in `t5like/config/base.py`."""
  name: str
  vocab_size: int
  d_model: int
  num_layers: int
  num_encoder_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  d_ff: int
  activation: str
  block: str
  norm: str
  norm_eps: float
  use_bias: bool
  embed_norm: bool
  position: str
  rope_theta: float
  rope_fraction: float
  max_positions: int
  num_types: int
  tie_embeddings: bool
  head: str
  scale_attention: bool
  qk_norm: str
  logit_softcap: float
  dropout: float
  dropout_style: str
  init: str
  dtype: str
  attention: str
  scan_layers: bool
  remat: str
  prefix_mask: bool = True
  layers: tuple[str, ...] = ('global',)
  window: int = 0
  window_after: int = 0
  encoder_window: int = 0
  local_rope_theta: float = 0.0
  rope_scaling: tuple[tuple[str, Any], ...] = ()
  qkv_bias: bool = False
  embed_scale: str = 'none'
  encoder_embed: str = 'shared'
  query_scale: float = 0.0
  attention_sinks: str = 'none'
  attention_softcap: float = 0.0
  context_attention: str = 'auto'
  quantization: str = 'none'
  experts: int = 0
  experts_per_token: int = 2
  expert_d_ff: int = 0
  expert_capacity: int = 0
  shared_experts: int = 0
  shared_gate: bool = False
  sparse_every: int = 1
  dense_first: int = 0
  router: str = 'softmax_normalized'
  router_balance: float = 0.0
  router_bias: bool = False
  router_z_loss: float = 0.0
  router_jitter: float = 0.0
  lora_rank: int = 0
  lora_alpha: float = 16.0
  lora_projections: tuple[str, ...] = ()

  @classmethod
  def of(cls, section: Mapping[str, Any]) -> 'ModelConfig':
    """Of `config.model`. NotImplementedError for a key that has no field here, so that no layer could read it."""
    fields = {field.name for field in dataclasses.fields(cls)}
    for key in section:
      if key not in fields:
        raise NotImplementedError(f'model.{key} is a key of t5like/config/base.py, but no field of ModelConfig in '
                                  't5like/model/config.py: no layer can read it. Add the field there.')
    # Tuples, since a ModelConfig has a hash.
    scaling = tuple(sorted(dict(section['rope_scaling']).items()))
    return cls(**{**section, 'rope_scaling': scaling})

  def size(self, dim: str) -> int:
    """Size of a dimension by its letter; here T is the number of learned positions, P of types, R of LoRA, E is D."""
    sizes = dict(
        V=self.vocab_size,
        D=self.d_model,
        E=self.d_model,
        L=self.num_layers,
        N=self.num_heads,
        K=self.num_kv_heads,
        H=self.head_dim,
        F=self.d_ff,
        T=self.max_positions,
        P=self.num_types,
        R=self.lora_rank,
        X=self.experts,
    )
    return sizes[dim]

  def is_sparse(self, layer: int) -> bool:
    """Whether a layer of a stack, counted from 0, has experts."""
    return self.experts > 0 and is_sparse(layer, self.sparse_every, self.dense_first)

  @property
  def kinds(self) -> tuple[choices.LayerKind, ...]:
    """Of the layers, a pattern that repeats over each stack."""
    return tuple(choices.LAYERS[name] for name in self.layers)

  def window_of(self, causal: bool) -> tuple[int, int]:
    """(positions before its own, positions after it) that a token of a local layer sees; `causal`: none after."""
    tokens = self.window
    if self.encoder_window and not causal:
      tokens = self.encoder_window
    if causal:
      return tokens - 1, 0
    return tokens - 1, (self.window_after or tokens) - 1

  @property
  def logit_scale(self) -> float:
    """What products of queries and keys are multiplied by."""
    if self.query_scale:
      return self.query_scale
    return self.head_dim ** -0.5 if self.scale_attention else 1.0

  @property
  def residual_scale(self) -> float:
    """Projections into the residual stream are initialised smaller because 2L of them are summed (GPT-2)."""
    return (2 * self.num_layers) ** -0.5
