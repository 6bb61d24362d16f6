"""Small models of each family: configs as transformers takes them, and weights made of a seed."""
import dataclasses
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from t5like import sharding
from t5like.model import transformer
from tests.tiny import MODEL

LLAMA = dict(vocab_size=101, hidden_size=36, intermediate_size=50, num_hidden_layers=2, num_attention_heads=3,
             max_position_embeddings=40)
BERT = dict(LLAMA, type_vocab_size=2)
T5 = dict(vocab_size=101, d_model=36, d_kv=8, d_ff=50, num_layers=3, num_decoder_layers=2, num_heads=3)

# name: (name of the config's class without 'Config', of the model's class, arguments of the config)
CASES = dict(
    llama=('Llama', 'LlamaForCausalLM', dict(LLAMA, rms_norm_eps=1e-5)),
    llama_grouped=('Llama', 'LlamaForCausalLM', dict(
        LLAMA, num_attention_heads=6, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
        rope_parameters=dict(rope_type='default', rope_theta=5e5))),
    olmo2=('Olmo2', 'Olmo2ForCausalLM', dict(LLAMA, num_attention_heads=6, num_key_value_heads=2, pad_token_id=None)),
    gpt2=('GPT2', 'GPT2LMHeadModel', dict(vocab_size=101, n_embd=36, n_layer=2, n_head=3, n_positions=40)),
    gpt2_wide=('GPT2', 'GPT2LMHeadModel', dict(
        vocab_size=101, n_embd=36, n_layer=2, n_head=3, n_positions=40, n_inner=50, activation_function='gelu',
        tie_word_embeddings=False)),
    gpt_neox=('GPTNeoX', 'GPTNeoXForCausalLM', dict(LLAMA, rope_parameters=dict(
        rope_type='default', rope_theta=1e4, partial_rotary_factor=0.5))),
    gpt_neox_in_turn=('GPTNeoX', 'GPTNeoXForCausalLM', dict(
        LLAMA, use_parallel_residual=False, hidden_act='gelu_new', rope_parameters=dict(
            rope_type='default', rope_theta=1e3, partial_rotary_factor=1.0))),
    bert=('Bert', 'BertForMaskedLM', BERT),
    roberta=('Roberta', 'RobertaForMaskedLM', dict(BERT, type_vocab_size=1, max_position_embeddings=42)),
    t5=('T5', 'T5ForConditionalGeneration', T5),
    t5_v1_1=('T5', 'T5ForConditionalGeneration', dict(T5, feed_forward_proj='gated-gelu', tie_word_embeddings=False)),
)


def weights(shapes, seed=0):
  """{name: fp32 array} of {name: shape}: matrices that keep sizes, norms and biases off their initial values."""
  made = {}
  for name, shape in shapes.items():
    # By name, so that no order matters; files call GPT-NeoX's head otherwise than its code.
    known = zlib.crc32(name.replace('embed_out', 'lm_head').encode())
    x = np.random.default_rng([seed, known]).normal(size=shape)
    if len(shape) > 1:
      x *= 0.15
    elif name.endswith('weight'):
      x = 1 + 0.3 * x
    else:
      x *= 0.3
    made[name] = x.astype(np.float32)
  return made


def tokens(rows, columns, seed=1):
  """[rows, columns] ids that are neither padding nor special in any of the families."""
  return np.random.default_rng(seed).integers(5, 101, (rows, columns)).astype(np.int32)


def row(ids, **more):
  """A batch of rows that are one text each."""
  T = ids.shape[1]
  return dict(inputs=ids, positions=np.tile(np.arange(T, dtype=np.int32), (len(ids), 1)),
              segments=np.ones_like(ids), **more)


def pack(texts, length):
  """One row of texts side by side, a segment each, and padding."""
  ids, positions, segments = (np.zeros((1, length), np.int32) for _ in range(3))
  at = 0
  for i, text in enumerate(texts):
    to = slice(at, at + len(text))
    ids[0, to], positions[0, to], segments[0, to] = text, np.arange(len(text)), i + 1
    at += len(text)
  return dict(inputs=ids, positions=positions, segments=segments)


def logits(model, params, batch):
  """Ours, [B, T, V]; `model`: values of config.model as `huggingface.read` gives them."""
  c = dataclasses.replace(MODEL, **dict(model, dropout=0.0))
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    ours = transformer.build(c)
    put = lambda x: jax.device_put(jnp.asarray(x), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    return np.asarray(jax.jit(ours.apply)(place(ours, params, mesh), jax.tree.map(put, batch)))


def place(ours, params, mesh):
  """Our parameters on a mesh; an error where the tree is not the model's own."""
  abstract = sharding.abstract(lambda: ours.init(jax.random.key(0)), mesh)
  return jax.tree.map(lambda like, x: jax.device_put(_same(like, x), like.sharding), abstract, params)


def _same(like, x):
  assert x.shape == like.shape and x.dtype == like.dtype, (x.shape, like.shape)
  return x


def write_folder(folder, config, made):
  """A folder as transformers leaves it, without transformers."""
  from safetensors.numpy import save_file
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  save_file(made, folder / 'model.safetensors', metadata=dict(format='pt'))
  return folder
