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
GROUPED = dict(LLAMA, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
NARROW = dict(LLAMA, num_attention_heads=6, num_key_value_heads=2)  # heads of 36 / 6
GROUPED_BY_WIDTH = dict(NARROW, hidden_size=48)  # heads of 8
BERT = dict(LLAMA, type_vocab_size=2)
T5 = dict(vocab_size=101, d_model=36, d_kv=8, d_ff=50, num_layers=3, num_decoder_layers=2, num_heads=3)
BART = dict(vocab_size=101, d_model=36, encoder_layers=3, decoder_layers=2, encoder_attention_heads=3,
            decoder_attention_heads=3, encoder_ffn_dim=50, decoder_ffn_dim=50, max_position_embeddings=40)
T5GEMMA = dict(GROUPED, num_hidden_layers=3, sliding_window=4, query_pre_attn_scalar=10, attn_logit_softcapping=3.0,
               final_logit_softcapping=7.0)
# Widths of experts are multiples of 4: torch's grouped product takes no others.
CHOSEN = dict(num_hidden_layers=3, num_experts=5, num_experts_per_tok=2)
QWEN_MOE = dict(CHOSEN, moe_intermediate_size=12)
SWITCH = dict(vocab_size=101, d_model=36, d_kv=8, d_ff=50, num_layers=4, num_decoder_layers=3, num_heads=3,
              num_sparse_encoder_layers=2, num_sparse_decoder_layers=1, num_experts=3)

# name: (name of the config's class without 'Config', of the model's class, arguments of the config)
CASES = dict(
    llama=('Llama', 'LlamaForCausalLM', dict(LLAMA, rms_norm_eps=1e-5)),
    llama_grouped=('Llama', 'LlamaForCausalLM', dict(
        LLAMA, num_attention_heads=6, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
        rope_parameters=dict(rope_type='default', rope_theta=5e5))),
    olmo2=('Olmo2', 'Olmo2ForCausalLM', dict(LLAMA, num_attention_heads=6, num_key_value_heads=2, pad_token_id=None)),
    llama31=('Llama', 'LlamaForCausalLM', dict(GROUPED, rope_parameters=dict(
        rope_type='llama3', rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32))),
    llama_linear=('Llama', 'LlamaForCausalLM', dict(GROUPED, hidden_act='gelu', rope_parameters=dict(
        rope_type='linear', rope_theta=1e4, factor=3.0))),
    llama_dynamic=('Llama', 'LlamaForCausalLM', dict(GROUPED, max_position_embeddings=6, rope_parameters=dict(
        rope_type='dynamic', rope_theta=1e4, factor=2.0))),
    llama_longrope=('Llama', 'LlamaForCausalLM', dict(GROUPED, rope_parameters=dict(
        rope_type='longrope', rope_theta=1e4, short_factor=[1.0, 1.1, 1.3, 1.5], long_factor=[1.0, 2.0, 3.5, 6.0],
        original_max_position_embeddings=6, factor=6.0))),
    mistral=('Mistral', 'MistralForCausalLM', dict(GROUPED, sliding_window=4)),
    mistral_global=('Mistral', 'MistralForCausalLM', dict(GROUPED, sliding_window=None, rope_parameters=dict(
        rope_type='yarn', rope_theta=1e4, factor=4.0, original_max_position_embeddings=10, beta_fast=2.0))),
    qwen2=('Qwen2', 'Qwen2ForCausalLM', dict(NARROW, tie_word_embeddings=True)),
    qwen2_window=('Qwen2', 'Qwen2ForCausalLM', dict(
        NARROW, num_hidden_layers=3, use_sliding_window=True, sliding_window=3, max_window_layers=1,
        rope_parameters=dict(rope_type='yarn', rope_theta=1e4, factor=4.0, original_max_position_embeddings=10,
                             truncate=False))),
    qwen3=('Qwen3', 'Qwen3ForCausalLM', dict(GROUPED, use_sliding_window=True, sliding_window=3, max_window_layers=1)),
    smollm3=('SmolLM3', 'SmolLM3ForCausalLM', dict(NARROW, num_hidden_layers=6, pad_token_id=None)),
    smollm3_window=('SmolLM3', 'SmolLM3ForCausalLM', dict(
        NARROW, num_hidden_layers=3, pad_token_id=None, no_rope_layer_interval=2, use_sliding_window=True,
        sliding_window=3, rope_parameters=dict(rope_type='yarn', rope_theta=2e6, factor=4.0,
                                               original_max_position_embeddings=10))),
    olmo3=('Olmo3', 'Olmo3ForCausalLM', dict(
        NARROW, num_hidden_layers=5, pad_token_id=None, sliding_window=4, rope_parameters=dict(
            full_attention=dict(rope_type='yarn', rope_theta=5e5, factor=8.0, original_max_position_embeddings=5,
                                attention_factor=1.2),
            sliding_attention=dict(rope_type='default', rope_theta=5e5)))),
    gemma2=('Gemma2', 'Gemma2ForCausalLM', dict(
        GROUPED, num_hidden_layers=3, sliding_window=4, query_pre_attn_scalar=10, attn_logit_softcapping=3.0,
        final_logit_softcapping=7.0, pad_token_id=None)),
    gemma3=('Gemma3Text', 'Gemma3ForCausalLM', dict(
        GROUPED, num_hidden_layers=7, sliding_window=4, query_pre_attn_scalar=8, pad_token_id=None,
        rope_parameters=dict(full_attention=dict(rope_type='linear', rope_theta=1e6, factor=8.0),
                             sliding_attention=dict(rope_type='default', rope_theta=1e4)))),
    phi3=('Phi3', 'Phi3ForCausalLM', dict(
        NARROW, pad_token_id=None, sliding_window=6, original_max_position_embeddings=8, rope_parameters=dict(
            rope_type='longrope', rope_theta=1e4, short_factor=[1.0, 1.1, 1.3], long_factor=[1.0, 2.0, 6.0]))),
    phi3_part=('Phi3', 'Phi3ForCausalLM', dict(
        GROUPED_BY_WIDTH, pad_token_id=None, rope_parameters=dict(
            rope_type='default', rope_theta=1e4, partial_rotary_factor=0.75))),
    mixtral=('Mixtral', 'MixtralForCausalLM', dict(GROUPED, num_local_experts=5, intermediate_size=52)),
    qwen2_moe=('Qwen2Moe', 'Qwen2MoeForCausalLM', dict(
        {**NARROW, **QWEN_MOE}, shared_expert_intermediate_size=24, decoder_sparse_step=2)),
    qwen3_moe=('Qwen3Moe', 'Qwen3MoeForCausalLM', dict(
        {**GROUPED, **QWEN_MOE}, mlp_only_layers=[0], norm_topk_prob=True, use_sliding_window=True, sliding_window=4)),
    olmoe=('Olmoe', 'OlmoeForCausalLM', dict(
        {**NARROW, **CHOSEN}, intermediate_size=52, pad_token_id=None)),
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
    xlm_roberta=('XLMRoberta', 'XLMRobertaForMaskedLM', dict(BERT, max_position_embeddings=42)),
    camembert=('Camembert', 'CamembertForMaskedLM', dict(BERT, type_vocab_size=1, max_position_embeddings=42)),
    electra=('Electra', 'ElectraForMaskedLM', dict(BERT, embedding_size=36)),
    modernbert=('ModernBert', 'ModernBertForMaskedLM', dict(
        LLAMA, num_hidden_layers=5, local_attention=6, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2)),
    t5gemma=('T5Gemma', 'T5GemmaForConditionalGeneration', dict(
        encoder=T5GEMMA, decoder=dict(T5GEMMA, num_hidden_layers=2), vocab_size=101)),
    t5=('T5', 'T5ForConditionalGeneration', T5),
    t5_shallow=('T5', 'T5ForConditionalGeneration', dict(T5, num_layers=3, num_decoder_layers=1)),  # as ByT5
    switch=('SwitchTransformers', 'SwitchTransformersForConditionalGeneration', SWITCH),
    switch_capacity=('SwitchTransformers', 'SwitchTransformersForConditionalGeneration', dict(
        SWITCH, num_layers=2, num_decoder_layers=2, num_sparse_decoder_layers=2, expert_capacity=2)),
    mt5=('MT5', 'MT5ForConditionalGeneration', T5),
    bart=('Bart', 'BartForConditionalGeneration', BART),
    mbart=('MBart', 'MBartForConditionalGeneration', dict(BART, scale_embedding=True, activation_function='relu')),
    umt5=('UMT5', 'UMT5ForConditionalGeneration', T5),
    t5_v1_1=('T5', 'T5ForConditionalGeneration', dict(T5, feed_forward_proj='gated-gelu', tie_word_embeddings=False)),
)
# Cases whose files have arrays of their own for what is one array in memory.
SEPARATE = {'mixtral', 'qwen2_moe', 'qwen3_moe', 'olmoe'}
# Cases in which experts take so few tokens of a row that texts side by side in one differ from texts alone.
BY_ROW = {'switch_capacity'}
UNTIED = ('t5_v1_1', 'mt5')  # cases whose files have an output matrix of its own, which transformers adopts then
# model_type of an export where another family comes first that computes the same.
EXPORTED_AS = dict(mistral_global='llama', mt5='t5', xlm_roberta='roberta', camembert='roberta', electra='bert',
                   phi3='mistral')
RENAMED = {'electra', 'phi3'}  # whose weights that family has by other names
# Cases whose products are of other arrays there and back, or of so few rows that torch rounds by where arrays lie.
ROUNDED = {*RENAMED, 'switch', 'switch_capacity'}
# Cases whose rotary rates depend on the longest row of a batch, so that a text's numbers do too.
BY_LONGEST_ROW = {'llama_dynamic', 'llama_longrope', 'phi3'}


def is_paired(name):
  """Whether a case reads two texts, one of them in its encoder."""
  return CASES[name][1].endswith('ForConditionalGeneration')


def weights(shapes, seed=0):
  """{name: fp32 array} of {name: shape}: matrices that keep sizes, norms and biases off their initial values."""
  made = {}
  for name, shape in shapes.items():
    # By name, so that no order matters; files call GPT-NeoX's head otherwise than its code.
    known = zlib.crc32(name.replace('embed_out', 'lm_head').encode())
    x = np.random.default_rng([seed, known]).normal(size=shape)
    if name == 'final_logits_bias':
      x *= 0  # as in all published models of BART
    elif len(shape) > 1:
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
  c = transformer.ModelConfig.of({**dataclasses.asdict(MODEL), **model, 'dropout': 0.0})
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
