"""Peers of benchmarks/step.py that are not ours: train steps on torch, of models of the shapes of `step_shapes.py`.

    pip install -e '.[parity]'

The decoder is GPT-2's, written directly in torch with its fused attention; T5 v1.1 and BERT are those of transformers,
the head of T5 with weights of its own, that of BERT on the predicted tokens alone. fp32, no dropout, AdamW in torch's
fused form, gradients clipped at a norm of 1.
"""
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from benchmarks.step_shapes import Shape

Loss = Callable[[], torch.Tensor]


class Block(nn.Module):
  """LayerNorm before attention and before the MLP, tanh GELU, biases (Radford et al. 2019)."""

  def __init__(self, width: int, heads: int, feed_forward: int) -> None:
    super().__init__()
    self.heads = heads
    self.attention_norm = nn.LayerNorm(width)
    self.qkv = nn.Linear(width, 3 * width)
    self.out = nn.Linear(width, width)
    self.mlp_norm = nn.LayerNorm(width)
    self.up = nn.Linear(width, feed_forward)
    self.down = nn.Linear(feed_forward, width)

  def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
    B, T, D = x_BTD.shape
    qkv = self.qkv(self.attention_norm(x_BTD))
    q, k, v = qkv.view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    y_BNTH = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    y_BTD = y_BNTH.transpose(1, 2).reshape(B, T, D)
    x_BTD = x_BTD + self.out(y_BTD)
    up = self.up(self.mlp_norm(x_BTD))
    return x_BTD + self.down(F.gelu(up, approximate='tanh'))


class Decoder(nn.Module):
  """GPT-2: learned positions, the table of tokens read backwards for logits."""

  def __init__(self, shape: Shape) -> None:
    super().__init__()
    self.tokens = nn.Embedding(shape.vocabulary, shape.width)
    self.positions = nn.Embedding(shape.length, shape.width)
    blocks = (Block(shape.width, shape.heads, shape.feed_forward) for _ in range(shape.layers))
    self.blocks = nn.ModuleList(blocks)
    self.norm = nn.LayerNorm(shape.width)
    for matrix in (self.tokens, self.positions):
      nn.init.normal_(matrix.weight, std=0.02)

  def forward(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token."""
    numbers = torch.arange(tokens_BT.shape[1])
    x_BTD = self.tokens(tokens_BT) + self.positions(numbers)
    for block in self.blocks:
      x_BTD = block(x_BTD)
    logits_BTV = F.linear(self.norm(x_BTD), self.tokens.weight)
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def _decoder(shape: Shape, draw: Callable[[int], torch.Tensor]) -> tuple[nn.Module, Loss]:
  model = Decoder(shape)
  tokens = draw(shape.length)
  targets = draw(shape.length)
  return model, lambda: model(tokens, targets)


def t5_config(shape: Shape) -> transformers.T5Config:
  settings: dict[str, Any] = dict(
      vocab_size=shape.vocabulary, d_model=shape.width, d_kv=shape.width // shape.heads, d_ff=shape.feed_forward,
      num_layers=shape.layers, num_decoder_layers=shape.layers, num_heads=shape.heads, dropout_rate=0.0,
      feed_forward_proj='gated-gelu', tie_word_embeddings=False, use_cache=False,
      pad_token_id=0, decoder_start_token_id=0)
  return transformers.T5Config(**settings)


def _encoder_decoder(shape: Shape, draw: Callable[[int], torch.Tensor]) -> tuple[nn.Module, Loss]:
  model = transformers.T5ForConditionalGeneration(t5_config(shape))
  # transformers 5 shares the head's weights with the table of tokens; those of T5 v1.1 are not shared.
  model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
  inputs = draw(shape.length)
  labels = draw(shape.targets)
  return model, lambda: model(input_ids=inputs, labels=labels).loss


def bert_config(shape: Shape) -> transformers.BertConfig:
  settings: dict[str, Any] = dict(
      vocab_size=shape.vocabulary, hidden_size=shape.width, num_hidden_layers=shape.layers,
      num_attention_heads=shape.heads, intermediate_size=shape.feed_forward, max_position_embeddings=shape.length,
      hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation='sdpa')
  return transformers.BertConfig(**settings)


def _encoder(shape: Shape, draw: Callable[[int], torch.Tensor]) -> tuple[nn.Module, Loss]:
  model = transformers.BertForMaskedLM(bert_config(shape))
  inputs = draw(shape.length)
  targets = draw(shape.targets)

  def loss() -> torch.Tensor:
    x_BTD = model.bert(input_ids=inputs).last_hidden_state
    predicted_BPD = x_BTD[:, :shape.targets]
    logits_BPV = model.cls(predicted_BPD)
    return F.cross_entropy(logits_BPV.flatten(0, 1), targets.flatten())

  return model, loss


MODELS = dict(decoder=_decoder, encoder_decoder=_encoder_decoder, encoder=_encoder)


def make_step(shape: Shape) -> tuple[int, Callable[[], float]]:
  """(number of parameters, a function that does a step on a fixed random batch and returns its loss)."""
  torch.manual_seed(0)
  rng = np.random.default_rng(0)

  def draw(length: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(1, shape.vocabulary, (shape.rows, length)))

  model, loss_of = MODELS[shape.name](shape, draw)
  model.train()
  parameters = list(model.parameters())
  optimizer = torch.optim.AdamW(parameters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

  def step() -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return loss.item()

  return sum(parameter.numel() for parameter in parameters), step
