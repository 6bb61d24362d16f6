"""Configs of published models beside transformers: the same parameters, and the same keys of the model.

    pip install -e '.[test,parity]' && pytest -m parity
"""
import pytest

from t5like import config as config_lib
from t5like.huggingface import model_config
from t5like.model import models
from tests.conftest import ROOT, Package

pytestmark = pytest.mark.parity
torch = Package('torch')
transformers = Package('transformers')

# What the config.json of a model on the Hub says where transformers' default is another, by config of ours:
# (name of the Hub, model_type, values, {key of config.model: why it is another one here}).
LONGER = 'the released model has seen longer rows since'
LLAMA = dict(rms_norm_eps=1e-5)
LLAMA_3 = dict(LLAMA, vocab_size=128_256, num_key_value_heads=8, rope_theta=500_000.0)
LLAMA_3_1 = dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                 original_max_position_embeddings=8192)
SMOLLM2 = dict(LLAMA, vocab_size=49_152, tie_word_embeddings=True)
QWEN3 = dict(vocab_size=151_936, num_key_value_heads=8, head_dim=128, rope_theta=1_000_000.0)
OLMO = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11_008, rms_norm_eps=1e-6,
            rope_theta=500_000.0)
SWITCH = dict(d_ff=3072, num_sparse_encoder_layers=6, num_sparse_decoder_layers=6)
DROPLESS = dict(expert_capacity='no token is dropped here')
KINDS = dict(decoder='CausalLM', encoder='MaskedLM', encoder_decoder='Seq2SeqLM')
PUBLISHED = {
    'llama2:7b': ('meta-llama/Llama-2-7b-hf', 'llama', dict(LLAMA), {}),
    'llama2:70b': ('meta-llama/Llama-2-70b-hf', 'llama', dict(
        LLAMA, hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28_672), {}),
    'llama3:8b': ('meta-llama/Meta-Llama-3-8B', 'llama', dict(LLAMA_3, intermediate_size=14_336), {}),
    'llama3:70b': ('meta-llama/Meta-Llama-3-70B', 'llama', dict(
        LLAMA_3, hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, intermediate_size=28_672), {}),
    'extend_llama3:128k': ('meta-llama/Llama-3.1-8B', 'llama', dict(
        LLAMA_3, intermediate_size=14_336, rope_scaling=LLAMA_3_1), {}),
    'extend_llama3:70b_128k': ('meta-llama/Llama-3.1-70B', 'llama', dict(
        LLAMA_3, hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, intermediate_size=28_672,
        rope_scaling=LLAMA_3_1), {}),
    'mistral_7b': ('mistralai/Mistral-7B-v0.1', 'mistral', dict(
        intermediate_size=14_336, rms_norm_eps=1e-5, sliding_window=4096, rope_theta=10_000.0), {}),
    'qwen3:0b6': ('Qwen/Qwen3-0.6B', 'qwen3', dict(
        QWEN3, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, intermediate_size=3072,
        tie_word_embeddings=True), dict(rope_theta=LONGER)),
    'qwen3:8b': ('Qwen/Qwen3-8B', 'qwen3', dict(QWEN3, num_hidden_layers=36, intermediate_size=12_288),
                 dict(rope_theta=LONGER)),
    'mixtral_8x7b': ('mistralai/Mixtral-8x7B-v0.1', 'mixtral', {}, {}),
    'olmoe_1b_7b': ('allenai/OLMoE-1B-7B-0924', 'olmoe', dict(intermediate_size=1024), {}),
    'qwen3_30b_a3b': ('Qwen/Qwen3-30B-A3B', 'qwen3_moe', dict(
        num_hidden_layers=48, head_dim=128, norm_topk_prob=True, rope_theta=1_000_000.0), dict(rope_theta=LONGER)),
    'switch_base:8': ('google/switch-base-8', 'switch_transformers', SWITCH, DROPLESS),
    'switch_base:128': ('google/switch-base-128', 'switch_transformers', dict(SWITCH, num_experts=128), DROPLESS),
    'gemma2_2b': ('google/gemma-2-2b', 'gemma2', dict(), {}),
    'olmo2_1b': ('allenai/OLMo-2-0425-1B', 'olmo2', dict(
        OLMO, vocab_size=100_352, hidden_size=2048, num_hidden_layers=16, num_attention_heads=16,
        intermediate_size=8192), {}),
    'olmo2_1b:7b': ('allenai/OLMo-2-1124-7B', 'olmo2', dict(OLMO, vocab_size=100_352), {}),
    'olmo3_7b': ('allenai/Olmo-3-1025-7B', 'olmo3', dict(OLMO, vocab_size=100_278), {}),
    'smollm2:135m': ('HuggingFaceTB/SmolLM2-135M', 'llama', dict(
        SMOLLM2, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, rope_theta=100_000.0), dict(rope_theta=LONGER)),
    'smollm2:360m': ('HuggingFaceTB/SmolLM2-360M', 'llama', dict(
        SMOLLM2, hidden_size=960, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5,
        intermediate_size=2560, rope_theta=100_000.0), dict(rope_theta=LONGER)),
    'smollm2:1b7': ('HuggingFaceTB/SmolLM2-1.7B', 'llama', dict(
        SMOLLM2, hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, intermediate_size=8192,
        rope_theta=130_000.0), dict(rope_theta=LONGER)),
    'modernbert_base': ('answerdotai/ModernBERT-base', 'modernbert', {}, dict(
        rope_theta=LONGER, local_rope_theta='one base of all layers, until rows are longer')),
    'modernbert_base:large_context': ('answerdotai/ModernBERT-large', 'modernbert', dict(
        hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, intermediate_size=2624), {}),
}


def ours(name):
  file, _, variant = name.partition(':')
  return config_lib.resolve(config_lib.load(f'{ROOT}/configs/{file}.py' + (f':{variant}' if variant else '')))


def theirs(name):
  """transformers' config."""
  _, kind, values, _ = PUBLISHED[name]
  return transformers.AutoConfig.for_model(kind, **values)


@pytest.mark.parametrize('name', PUBLISHED)
def test_as_many_parameters(name):
  """On torch's meta device, on which arrays have shapes alone."""
  with torch.device('meta'):
    kind = KINDS[ours(name).model.name]
    model = getattr(transformers, f'AutoModelFor{kind}').from_config(theirs(name))
  model.tie_weights()
  config = ours(name)
  assert models.sizes(config)['parameters'] == model.num_parameters() == config.params_expected


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_same_keys_of_the_model(name):
  """Whatever changes what is computed, read from their config by the import of models."""
  _, _, _, others = PUBLISHED[name]
  values = model_config.to_model(theirs(name).to_dict())
  differing = model_config.differing(values, ours(name).model.to_dict())
  assert sorted(differing) == sorted(others)
