"""Hugging Face's models here and ours there; what transformers computed of them is in tests/golden."""
import copy
import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from safetensors.flax import save_file as save_jax

from t5like import choices, config as config_lib, sharding
from t5like.config import base
from t5like.decoding import trained_model
from t5like.errors import CheckpointError, ConfigError
from t5like.huggingface import folder_tokenizers, model_config, model_folders, runs, weight_table
from t5like.huggingface.families import FAMILIES
from t5like.model import transformer
from t5like.vocabulary import loading as vocabulary_lib, tokenizer_export
from t5like.vocabulary.tokenizer_json import HuggingFace
from tests import tiny
from tests.conftest import COMPILED_FAST, ROOT
from tests.parity import cases

GOLDEN = np.load(ROOT / 'tests' / 'golden' / 'huggingface.npz')
ABOUT = json.loads(str(GOLDEN['about']))


def folder_of(name, path, change=lambda config, made: None):
  """A folder as transformers saved the case, `change` having its way with it first."""
  config, made = copy.deepcopy(ABOUT[name]['config']), cases.weights(ABOUT[name]['shapes'])
  change(config, made)
  return cases.write_folder(path, config, made)


def batch_of(name):
  inputs = cases.row(cases.tokens(2, 9))
  return cases.row(cases.tokens(2, 7, seed=2), encoder=inputs) if cases.is_paired(name) else inputs


def same(a, b):
  return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))


def read_file(path):
  with safe_open(path, framework='numpy') as f:
    return {key: f.get_tensor(key) for key in f.keys()}


# --- Numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', cases.CASES)
def test_logits_are_those_of_transformers_and_weights_go_back(name, tmp_path):
  values, params = model_folders.read(folder_of(name, tmp_path / 'a'))
  np.testing.assert_allclose(cases.logits(values, params, batch_of(name)), GOLDEN[name], rtol=0, atol=1e-4)
  assert model_folders.write(tmp_path / 'b', values, params) == []
  before, after = (read_file(tmp_path / folder / 'model.safetensors') for folder in 'ab')
  before.pop('final_logits_bias', None)  # zeros, which transformers can do without
  if name not in cases.RENAMED:
    assert before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in before)
  assert same(model_folders.read(tmp_path / 'b')[1], params)
  config = json.loads((tmp_path / 'b' / 'config.json').read_text())
  theirs = ABOUT[name]['config']
  kind = cases.EXPORTED_AS.get(name, theirs['model_type'])
  assert (config['architectures'], config['model_type']) == ([FAMILIES[kind].architecture], kind)
  assert model_config.to_model(config) == values
  keys = [key for key in FAMILIES[kind].keys if key in theirs]
  expected = {key: theirs[key] for key in keys} | (dict(n_inner=144) if name == 'gpt2' else {})
  assert name in cases.UNTIED or {key: config[key] for key in keys} == expected


def test_fused_projections_by_hand(tmp_path):
  """GPT-2 has all of q, then all of k, then of v; GPT-NeoX q, k and v of each head in turn."""
  keys = dict(gpt2='transformer.h.1.attn.c_attn', gpt_neox='gpt_neox.layers.1.attention.query_key_value')
  for name, key in keys.items():
    folder = folder_of(name, tmp_path / name)
    theirs, (_, params) = read_file(folder / 'model.safetensors'), model_folders.read(folder)
    attention = params['stack']['blocks']['attention']
    for which, part in enumerate('qkv'):
      for head in range(3):
        for h in range(12):
          row = which * 36 + head * 12 + h if name == 'gpt2' else head * 36 + which * 12 + h
          w = theirs[f'{key}.weight'][:, row] if name == 'gpt2' else theirs[f'{key}.weight'][row]
          assert np.array_equal(attention[part]['w'][1][:, head, h], w)
          assert attention[part]['b'][1][head, h] == theirs[f'{key}.bias'][row]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=4, max_size=4), st.sampled_from([
    ('DNH', ['NH', 'D']), ('DNH', ['D', '3NH']), ('DNH', ['N3H', 'D']), ('NH', ['N3H']), ('FD', ['D', 'F'])]))
def test_layouts_are_undone(numbers, layout):
  dims, axes = layout
  sizes = dict(zip('DNHF', numbers)) | {'3': 3}
  shape = weight_table.shape_of(axes, sizes)
  x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  ours = weight_table.to_ours(x, dims, axes, sizes)
  assert ours.shape[-len(dims):] == tuple(sizes[d] for d in dims)
  assert np.array_equal(weight_table.to_theirs(ours, dims, axes, sizes), x)


def test_a_model_without_biases_goes_out_with_zeros(tmp_path):
  values, params = model_folders.read(folder_of('gpt2', tmp_path / 'a'))
  drop = lambda tree: {k: drop(v) if isinstance(v, dict) else v for k, v in tree.items() if k != 'b'}
  bare, model = drop(params), dict(values, use_bias=False)
  model_folders.write(tmp_path / 'b', model, bare)
  again, with_zeros = model_folders.read(tmp_path / 'b')
  assert again['use_bias'] and not with_zeros['stack']['norm']['b'].any()
  a, b = cases.logits(model, bare, batch_of('gpt2')), cases.logits(again, with_zeros, batch_of('gpt2'))
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_many_files_of_half_precision(dtype, tmp_path):
  half = {key: jnp.asarray(x, dtype) for key, x in cases.weights(ABOUT['llama']['shapes']).items()}
  names, where = sorted(half), {}
  for i in range(3):
    file = f'model-{i + 1:05}-of-00003.safetensors'
    save_jax({key: half[key] for key in names[i::3]}, tmp_path / file)
    where.update(dict.fromkeys(names[i::3], file))
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=where)))
  (tmp_path / 'config.json').write_text(json.dumps(ABOUT['llama']['config']))
  values, params = model_folders.read(tmp_path)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  expected = model_folders.read(folder_of('llama', tmp_path / 'whole', lambda config, made: made.update(
      {key: np.asarray(x, np.float32) for key, x in half.items()})))
  assert values == expected[0] and same(params, expected[1])
  (tmp_path / 'model-00002-of-00003.safetensors').unlink()
  with pytest.raises(CheckpointError, match='has no model-00002-of-00003.safetensors'):
    model_folders.read(tmp_path)


def _gpt2_of_the_hub(config, made):
  for key in list(made):
    made[key.removeprefix('transformer.')] = made.pop(key)
  made.update({f'h.{i}.attn.bias': np.ones((1, 1, 40, 40), np.float32) for i in range(2)})


def _old_bert(config, made):
  for key in list(made):
    old = key.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')
    made[old] = made.pop(key)
  made.update({'bert.pooler.dense.weight': np.ones((36, 36), np.float32),
               'bert.pooler.dense.bias': np.ones(36, np.float32),
               'cls.seq_relationship.weight': np.ones((2, 36), np.float32),
               'bert.embeddings.position_ids': np.arange(40)[None],
               'cls.predictions.decoder.weight': made['bert.embeddings.word_embeddings.weight'],
               'cls.predictions.decoder.bias': made['cls.predictions.bias']})


def _old_neox(config, made):
  made['lm_head.weight'] = made.pop('embed_out.weight')
  made['gpt_neox.layers.0.attention.rotary_emb.inv_freq'] = np.ones(3, np.float32)
  made['gpt_neox.layers.0.attention.masked_bias'] = np.ones((), np.float32)
  rope = config.pop('rope_parameters')
  config.update(rotary_pct=rope['partial_rotary_factor'], rotary_emb_base=rope['rope_theta'])


def _old_llama(config, made):
  made['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(3, np.float32)
  config.update(rope_theta=config.pop('rope_parameters')['rope_theta'], rope_scaling=None)
  made['lm_head.weight'] = made['model.embed_tokens.weight'].copy()


def _old_t5(config, made):
  for key in ('scale_decoder_outputs', 'num_decoder_layers', 'feed_forward_proj'):
    config.pop(key)
  config['num_decoder_layers'] = 2
  made.update({f'{side}.embed_tokens.weight': made['shared.weight'].copy() for side in ('encoder', 'decoder')})
  made['decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'] = np.ones((32, 3), np.float32)


@pytest.mark.parametrize('name,change', [('gpt2', _gpt2_of_the_hub), ('bert', _old_bert), ('gpt_neox', _old_neox),
                                         ('llama_grouped', _old_llama), ('t5', _old_t5)])
def test_other_names_and_needless_weights(name, change, tmp_path):
  values, params = model_folders.read(folder_of(name, tmp_path / 'a'))
  other_values, other = model_folders.read(folder_of(name, tmp_path / 'b', change))
  assert values == other_values and same(params, other)


def test_weights_that_do_not_fit_are_named(tmp_path):
  def change(config, made):
    del made['model.layers.1.mlp.up_proj.weight']
    made['model.layers.2.mlp.up_proj.weight'] = made['model.norm.weight'][:7].copy()
    made['model.norm.weight'] = made['model.norm.weight'][:7].copy()
  with pytest.raises(CheckpointError) as e:
    model_folders.read(folder_of('llama', tmp_path / 'a', change))
  for text in ('layers.1.mlp.up_proj.weight is missing', 'layers.2.mlp.up_proj.weight is unexpected',
               r'model.norm.weight has the shape (7,), not (36,)'):
    assert text in str(e.value)
  def untied(config, made):
    made['lm_head.weight'] = 2 * made['model.embed_tokens.weight']
  with pytest.raises(CheckpointError, match='lm_head.weight and model.embed_tokens.weight differ'):
    model_folders.read(folder_of('llama_grouped', tmp_path / 'b', untied))
  (tmp_path / 'b' / 'model.safetensors').write_bytes(b'no weights')
  with pytest.raises(CheckpointError, match='cannot be read as safetensors'):
    model_folders.read(tmp_path / 'b')
  (tmp_path / 'b' / 'model.safetensors').unlink()
  with pytest.raises(CheckpointError, match='pytorch_model.bin'):
    model_folders.read(tmp_path / 'b')
  with pytest.raises(ConfigError, match='config.json cannot be read'):
    model_folders.read(tmp_path / 'nowhere')


def test_padding_rows_are_zeros_and_change_nothing(tmp_path):
  folder = folder_of('bert', tmp_path / 'a')
  values, params = model_folders.read(folder, vocab_size=128)
  assert values['vocab_size'] == 128 and params['embed']['w'].shape == (128, 36)
  assert params['head']['b'].shape == (128,)
  assert not params['embed']['w'][101:].any() and not params['head']['b'][101:].any()
  logits = cases.logits(values, params, batch_of('bert'))
  np.testing.assert_allclose(logits[..., :101], GOLDEN['bert'], rtol=0, atol=1e-4)


# --- Configs --------------------------------------------------------------------------------------


@pytest.mark.parametrize('name,key,value', [
    ('llama', 'attention_bias', True), ('llama', 'mlp_bias', True), ('llama', 'hidden_act', 'tanh'),
    ('llama', 'rope_parameters', dict(rope_type='llama3', rope_theta=1e4)),
    ('llama', 'rope_scaling', dict(type='proportional', factor=2.0)),
    ('gpt_neox', 'rope_scaling', dict(type='linear', factor=2.0)),
    ('phi3', 'rope_scaling', dict(type='linear', factor=2.0)),
    ('olmo3', 'rope_parameters', dict(sliding_attention=dict(rope_type='linear', factor=2.0))),
    ('qwen3', 'attention_bias', True), ('olmo2', 'head_dim', 7), ('gemma2', 'use_bidirectional_attention', True),
    ('gemma3', 'use_bidirectional_attention', True), ('smollm3', 'mlp_bias', True),
    ('smollm3', 'no_rope_layers', [1, 0]), ('gemma2', 'layer_types', ['full_attention'] * 2),
    ('gemma2', 'layer_types', ['chunked_attention'] * 3), ('electra', 'embedding_size', 20),
    ('bart', 'decoder_ffn_dim', 60), ('mbart', 'decoder_attention_heads', 4), ('bart', 'tie_word_embeddings', False),
    ('camembert', 'pad_token_id', 0), ('mt5', 'relative_attention_max_distance', 64),
    ('llama', 'partial_rotary_factor', 0.5), ('mixtral', 'num_experts_per_tok', 6), ('olmoe', 'clip_qkv', 8.0),
    ('olmoe', 'num_experts', 50_000), ('qwen2_moe', 'mlp_only_layers', [2, 0, 1]), ('qwen2_moe', 'qkv_bias', False),
    ('qwen3_moe', 'mlp_only_layers', [1]),
    ('qwen2_moe', 'shared_expert_intermediate_size', 30), ('switch', 'router_bias', True),
    ('switch', 'num_sparse_encoder_layers', 5), ('switch', 'router_dtype', 'bfloat16'),
    ('llama', 'model_type', 'lama'), ('llama', 'quantization_config', dict(bits=4)), ('olmo2', 'attention_bias', True),
    ('gpt2', 'scale_attn_by_inverse_layer_idx', True), ('gpt2', 'add_cross_attention', True),
    ('gpt_neox', 'attention_bias', False), ('gpt_neox', 'rotary_pct', 0.26), ('bert', 'is_decoder', True),
    ('bert', 'position_embedding_type', 'relative_key'), ('bert', 'tie_word_embeddings', False),
    ('roberta', 'pad_token_id', 0), ('t5', 'relative_attention_num_buckets', 64), ('llama', 'num_key_value_heads', 2)])
def test_what_ours_cannot_do_is_an_error_with_its_key(name, key, value):
  config = dict(ABOUT[name]['config'], **{key: value})
  if key.startswith(('rope_scaling', 'rotary', 'partial')):
    del config['rope_parameters']
  with pytest.raises(ConfigError, match=key):
    model_config.to_model(config)


@pytest.mark.parametrize('kind, words', [('t5gemma2', 'one softmax'), ('gpt_oss', 'clipped activation')])
def test_blocks_that_ours_lack_are_named(kind, words):
  with pytest.raises(ConfigError, match=f"model_type='{kind}' in config.json cannot be read: .*{words}"):
    model_config.to_model(dict(ABOUT['t5gemma']['config'], model_type=kind))


@pytest.mark.parametrize('tied', [True, False])
def test_an_untied_umt5_has_a_note(tmp_path, tied):
  """transformers 5 scales its logits, as no other library does."""
  head = 'scaled' if tied else 'linear'
  values = dict(dataclasses.asdict(tiny.MODEL), **FAMILY_OF['umt5'], tie_embeddings=tied, head=head)
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    params = jax.device_get(jax.jit(transformer.build(transformer.ModelConfig.of(values)).init)(jax.random.key(0)))
  notes = model_folders.write(tmp_path / 'out', values, params)
  assert [('sqrt(d_model)' in note) for note in notes] == [True] * (not tied)
  assert model_folders.read(tmp_path / 'out')[0]['tie_embeddings'] == tied


def test_weights_without_a_place_are_zeros(tmp_path):
  about = ABOUT['bart']
  made = cases.weights(about['shapes'])
  assert not made['final_logits_bias'].any()
  made['final_logits_bias'][0, 7] = 0.5
  folder = cases.write_folder(tmp_path, about['config'], made)
  with pytest.raises(CheckpointError, match='final_logits_bias is not zero everywhere, and bart models'):
    model_folders.read(folder)


def test_rotary_numbers_of_all_versions():
  plain = {k: v for k, v in ABOUT['gpt_neox']['config'].items() if k != 'rope_parameters'}
  rope = lambda **more: [model_config.to_model(dict(plain, **more))[k] for k in ('rope_theta', 'rope_fraction')]
  assert rope(hidden_size=96) == [1e4, 0.25]
  assert rope(rotary_pct=0.5, rotary_emb_base=500) == [500.0, 0.5]
  assert rope(rope_parameters=dict(rope_theta=7e3, partial_rotary_factor=1.0)) == [7e3, 1.0]
  both = dict(rope_parameters=dict(rope_theta=7e3), rope_scaling=dict(type='default', rope_theta=8e3))
  both['rope_scaling']['partial_rotary_factor'] = 1.0
  assert rope(**both) == [8e3, 1.0]
  llama = {k: v for k, v in ABOUT['llama']['config'].items() if k != 'rope_parameters'}
  with pytest.raises(ConfigError, match="rope_scaling .*rope_type='proportional'"):
    model_config.to_model(dict(ABOUT['llama']['config'], rope_scaling=dict(type='proportional', factor=2.0)))
  assert model_config.to_model(dict(llama, rope_theta=5e5, rope_scaling=None))['rope_theta'] == 5e5


def test_a_config_that_lacks_a_size_is_an_error():
  with pytest.raises(ConfigError, match='llama model lacks hidden_size'):
    model_config.to_model({k: v for k, v in ABOUT['llama']['config'].items() if k != 'hidden_size'})


def test_the_nearest_family_is_named():
  model = dataclasses.asdict(tiny.MODEL)
  assert model_config.family_of(model) == 'llama'
  for changes, texts in [
      (dict(qk_norm='all'), ('nearest is llama', "model.qk_norm='all'")),
      (dict(position='none'), ("model.position='none', which would have to be 'rope'",)),
      (dict(logit_softcap=30.0), ('model.logit_softcap=30.0',)),
      (dict(activation='gelu'), ("model.activation='gelu'",)),
      (dict(block='output_norm', qk_norm='all', head_dim=16), ('nearest is olmo2', 'model.head_dim=16'))]:
    with pytest.raises(ConfigError) as e:
      model_config.family_of(dict(model, **changes))
    assert all(text in str(e.value) for text in texts), str(e.value)


GEMMA = dict(block='sandwich', norm='rmsnorm_unit', embed_scale='sqrt_d_model', activation='geglu')
BART = dict(name='encoder_decoder', norm='layernorm', norm_eps=1e-5, use_bias=True, block='post_norm', embed_norm=True,
            encoder_embed='own_positions', position='learned_from_2', tie_embeddings=True, activation='gelu',
            num_kv_heads=4)
EXPERTS = dict(experts=8, experts_per_token=2, expert_d_ff=24)
FAMILY_OF = dict(  # changes of tiny.MODEL that make it of each family
    llama=dict(),
    olmo2=dict(block='output_norm', qk_norm='all'),
    gpt2=dict(norm='layernorm', use_bias=True, position='learned', activation='gelu_tanh', num_kv_heads=4),
    gpt_neox=dict(norm='layernorm', use_bias=True, block='parallel', activation='gelu', num_kv_heads=4,
                  rope_fraction=0.5),
    bert=dict(name='encoder', norm='layernorm', use_bias=True, block='post_norm', embed_norm=True, num_types=2,
              position='learned', head='mlm', tie_embeddings=True, activation='gelu', num_kv_heads=4),
    t5=dict(name='encoder_decoder', position='relative', scale_attention=False, num_kv_heads=4),
    umt5=dict(name='encoder_decoder', position='relative_per_layer', scale_attention=False, num_kv_heads=4),
    bart=BART,
    mbart=dict(BART, block='pre_norm', embed_scale='sqrt_d_model', activation='relu'),
    mistral=dict(layers=('local',), window=5),
    qwen2=dict(qkv_bias=True, layers=('global', 'local'), window=5),
    qwen3=dict(qk_norm='head', head_dim=10),
    smollm3=dict(layers=('global', 'local_nope'), window=5),
    olmo3=dict(block='output_norm', qk_norm='all', layers=('local', 'global'), window=5),
    gemma2=dict(GEMMA, layers=('local', 'global'), window=5, query_scale=10 ** -0.5, attention_softcap=5.0),
    gemma3_text=dict(GEMMA, qk_norm='head', layers=('local', 'global'), window=5, local_rope_theta=1e3,
                     logit_softcap=3.0),
    mixtral=dict(EXPERTS),
    qwen2_moe=dict(EXPERTS, qkv_bias=True, shared_experts=2, shared_gate=True, sparse_every=2, dense_first=1),
    qwen3_moe=dict(EXPERTS, qk_norm='head', head_dim=10, router='softmax', layers=('local',), window=5),
    olmoe=dict(EXPERTS, qk_norm='all', router='softmax'),
    switch_transformers=dict(EXPERTS, name='encoder_decoder', position='relative', scale_attention=False,
                             num_kv_heads=4, activation='relu', experts_per_token=1, sparse_every=2, router='softmax',
                             expert_capacity=5, expert_d_ff=64, d_ff=64),
    phi3=dict(rope_fraction=0.5),
    t5gemma=dict(GEMMA, name='encoder_decoder', encoder_embed='own', tie_embeddings=True, layers=('local', 'global'),
                 window=5, encoder_window=6),
    modernbert=dict(name='encoder', norm='layernorm', block='bare_first', embed_norm=True, head='mlm_unbiased',
                    tie_embeddings=True, activation='geglu_exact', num_kv_heads=4, layers=('global', 'local'), window=5,
                    local_rope_theta=1e3))


@pytest.mark.parametrize('kind', FAMILY_OF)
def test_export_refuses_keys_that_it_does_not_know(kind, monkeypatch):
  """A new key of config.model, such as attention sinks, changes what a model computes until export knows it."""
  model = dict(dataclasses.asdict(tiny.MODEL), **FAMILY_OF[kind])
  assert model_config.family_of(model) == kind
  with pytest.raises(ConfigError, match='model.sinks=0, which no family is known to have'):
    model_config.family_of(dict(model, sinks=0))
  monkeypatch.setitem(model_config.DEFAULTS, 'model.sinks', 0)
  assert model_config.family_of(dict(model, sinks=0)) == kind
  with pytest.raises(ConfigError, match='model.sinks=64, which would have to be 0'):
    model_config.family_of(dict(model, sinks=64))
  with pytest.raises(ConfigError, match='model.sinks=64'):
    model_config.to_hf(dict(model, sinks=64))


@pytest.mark.parametrize('changes,words', [
    (dict(layers=('local', 'global'), window=5, block='output_norm', qk_norm='all', rope_fraction=0.5),
     'model.rope_fraction=0.5'),
    (dict(FAMILY_OF['gemma2'], query_scale=0.3), r'model.query_scale=0.3, which would have to be 0.301511'),
    (dict(FAMILY_OF['gemma2'], layers=('local_nope', 'global')), "model.layers=.'local_nope', 'global'."),
    (dict(FAMILY_OF['gemma2'], local_rope_theta=1e3), 'model.local_rope_theta=1000.0'),
    (dict(FAMILY_OF['phi3'], rope_scaling=dict(name='linear', factor=2.0)), 'model.rope_fraction=0.5'),
    (dict(FAMILY_OF['phi3'], layers=('local', 'global'), window=5), 'model.rope_fraction=0.5'),
    (dict(FAMILY_OF['gpt_neox'], rope_scaling=dict(name='linear', factor=2.0)), 'model.rope_scaling'),
    (dict(FAMILY_OF['gpt2'], layers=('local',), window=5), 'model.layers=.*; model.window=5'),
    (dict(FAMILY_OF['t5'], layers=('local',), window=5), 'model.layers=.*; model.window=5'),
    (dict(FAMILY_OF['mixtral'], router_bias=True), 'is mixtral, but for model.router_bias=True, [^;]*False.$'),
    (dict(FAMILY_OF['mixtral'], sparse_every=2), 'is mixtral, but for model.sparse_every=2, [^;]*1.$'),
    (dict(FAMILY_OF['mixtral'], router='sigmoid'), "is mixtral, but for model.router='sigmoid', [^;]*normalized'.$"),
    (dict(FAMILY_OF['olmoe'], shared_experts=1), 'is olmoe, but for model.shared_experts=1, [^;]*0.$'),
    (dict(FAMILY_OF['qwen3_moe'], expert_capacity=5), 'is qwen3_moe, but for model.expert_capacity=5, [^;]*0.$'),
    (dict(FAMILY_OF['qwen2_moe'], shared_gate=False), 'is qwen2_moe, but for model.shared_gate=False, [^;]*True.$'),
    (dict(FAMILY_OF['switch_transformers'], experts_per_token=2), 'is switch_t.*, but for [^;]*_per_token=2, [^;]*1.$'),
    (dict(FAMILY_OF['switch_transformers'], sparse_every=3), 'is switch_t.*, but for [^;]*_every=3, [^;]*1 or 2.$'),
    (dict(FAMILY_OF['switch_transformers'], d_ff=50), 'is switch_t.*, but for model.d_ff=50, [^;]*64.$'),
])
def test_what_the_nearest_family_cannot_say_is_named(changes, words):
  with pytest.raises(ConfigError, match=f'no Hugging Face family.*{words}'):
    model_config.to_hf(dict(dataclasses.asdict(tiny.MODEL), **changes))


@st.composite
def of_families(draw):
  """(family, values of config.model that it can represent)."""
  kind = draw(st.sampled_from(sorted(FAMILY_OF)))
  family = FAMILIES[kind]
  position = choices.POSITIONS[FAMILY_OF[kind].get('position', 'rope')]
  heads = draw(st.sampled_from([2, 4, 6]))
  head_dim = 8
  if family.any_head_dim:
    head_dim = draw(st.sampled_from([8, 12, 16]))
  changes = dict(
      vocab_size=draw(st.integers(1, 999)), d_model=heads * 8, num_heads=heads, head_dim=head_dim,
      d_ff=draw(st.integers(1, 99)), num_layers=draw(st.integers(1, 9)), norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
      num_kv_heads=draw(st.sampled_from([1, 2, heads])) if family.grouped else heads,
      activation=draw(st.sampled_from(sorted(set(family.activations.values())))), dropout=0.0,
      tie_embeddings=family.ours.get('tie_embeddings', False) or draw(st.booleans()))
  if 'norm_eps' in family.ours:
    changes['norm_eps'] = family.ours['norm_eps']
  if kind in ('t5', 'umt5', 'switch_transformers'):
    changes.update(head='scaled' if changes['tie_embeddings'] else 'linear', num_encoder_layers=draw(st.integers(1, 9)))
  if 'experts' in FAMILY_OF[kind]:
    changes.update(draw(of_experts(kind)))
    if changes.get('expert_d_ff'):
      changes['d_ff'] = changes['expert_d_ff']
  if position.rotary:
    changes['rope_theta'] = draw(st.sampled_from([1e4, 5e5]))
  if family.scalings and draw(st.booleans()):
    changes['rope_scaling'] = draw(scalings(family, int(head_dim * FAMILY_OF[kind].get('rope_fraction', 1.0)) // 2))
  if kind in KINDS_OF_LAYERS:
    names = st.sampled_from(KINDS_OF_LAYERS[kind])
    changes['layers'] = tuple(draw(st.lists(names, min_size=1, max_size=3)))
    changes['window'] = draw(st.integers(1, 99)) if any('local' in name for name in changes['layers']) else 0
  if kind == 't5gemma':
    has_window = changes['window'] > 0
    changes.update(encoder_window=changes['window'] + has_window, num_encoder_layers=draw(st.integers(1, 9)))
  if kind in ('mistral', 'mixtral', 'phi3', 'qwen3_moe'):
    changes.update(layers=('local',), window=draw(st.integers(1, 99)))
  if family.rope_by_layer:
    changes['local_rope_theta'] = draw(st.sampled_from([0.0, 1e4, 1e3]))
  if 'query_scale' in family.represents:
    changes['query_scale'] = draw(st.sampled_from([0.0, 10 ** -0.5, 144 ** -0.5]))
    changes.update({key: draw(st.sampled_from([0.0, 30.0])) for key in ('attention_softcap', 'logit_softcap')})
  return kind, dict(dataclasses.asdict(tiny.MODEL), **{**FAMILY_OF[kind], **changes})


@st.composite
def of_experts(draw, kind):
  """Keys about experts that a family can represent."""
  family = FAMILIES[kind]
  changes = dict(experts=draw(st.integers(2, 9)))
  if isinstance(family.ours.get('router'), tuple):
    changes['router'] = draw(st.sampled_from(family.ours['router']))
  if 'sparse_every' in family.represents:
    changes.update(num_layers=draw(st.integers(6, 9)), sparse_every=draw(st.integers(1, 3)),
                   dense_first=draw(st.integers(0, 3)))
  if 'expert_capacity' in family.represents:
    width = draw(st.integers(1, 99))
    changes.update(expert_capacity=draw(st.sampled_from([0, 1, 64])), expert_d_ff=width,
                   sparse_every=draw(st.integers(1, 2)), num_layers=draw(st.integers(2, 9)),
                   num_encoder_layers=draw(st.integers(2, 9)))
  return changes


KINDS_OF_LAYERS = dict(
    qwen2=('global', 'local'), qwen3=('global', 'local'), smollm3=tuple(choices.LAYERS), olmo3=('global', 'local'),
    qwen2_moe=('global', 'local'), gemma2=('global', 'local'), gemma3_text=('global', 'local'),
    modernbert=('global', 'local'), t5gemma=('global', 'local'))
NUMBERS = dict(
    factor=[2.0, 8], original_positions=[16, 4096], low_freq_factor=[1.0], high_freq_factor=[4.0],
    attention_factor=[0.0, 1.25], beta_fast=[32.0, 16.0], beta_slow=[1.0, 2.0], mscale=[0.0, 0.7],
    mscale_all_dim=[0.0, 1.0], truncate=[True, False])


@st.composite
def scalings(draw, family, pairs):
  """model.rope_scaling of a family whose heads turn so many pairs of dimensions."""
  name = draw(st.sampled_from(family.scalings))
  facts = choices.ROPE_SCALINGS[name]
  scaling = dict(name=name)
  for key in facts.required:
    scaling[key] = (1.5,) * pairs if key in facts.lists else draw(st.sampled_from(NUMBERS[key]))
  for key, default in facts.optional.items():
    value = draw(st.sampled_from(NUMBERS[key]))
    if value != default:
      scaling[key] = value
  return scaling


@settings(max_examples=300, deadline=None)
@given(of_families(), st.sampled_from([0, 7, 512]))
def test_what_a_family_represents_comes_back_equal(drawn, length):
  kind, model = drawn
  hf = json.loads(json.dumps(model_config.to_hf(model, length=length)))
  order = list(FAMILIES)
  assert order.index(hf['model_type']) <= order.index(kind)  # or an earlier one that can say it
  back = model_config.to_model(hf)
  assert not model_config.differing(back, model) and not model_config.differing(model, back)
  again = {**hf, **json.loads(json.dumps(model_config.to_hf(dict(model, **back), length=length)))}
  assert again == hf


def test_export_knows_every_key(monkeypatch):
  """Each key of config.model is represented in some family, fixed, or without effect: none is let through unseen."""
  monkeypatch.setattr(model_config, 'DEFAULTS', {})
  for kind, changes in FAMILY_OF.items():
    assert model_config.family_of(dict(dataclasses.asdict(tiny.MODEL), **changes)) == kind


# --- Weights to begin with ------------------------------------------------------------------------


def run_config(model, init_from, **sections):
  c = base()
  c.model.update(**model, dtype='float32')
  c.init_from = str(init_from)
  for name, values in sections.items():
    c[name].update(values)
  return config_lib.resolve(c)


def start(config, vocabulary=None, **axes):
  """huggingface.initial on a mesh of these sizes."""
  axes = dict(data=1, fsdp=1, tensor=1) | axes
  mesh = sharding.make_mesh(axes, jax.devices()[:int(np.prod(list(axes.values())))])
  with jax.set_mesh(mesh):
    model = transformer.build(transformer.ModelConfig.of(config.model))
    abstract = sharding.abstract(lambda: model.init(jax.random.key(0)), mesh)
    params = model_folders.initial(config, abstract, vocabulary)
  assert jax.tree.all(jax.tree.map(lambda x, like: x.sharding == like.sharding, params, abstract))
  return params


@pytest.mark.parametrize('theirs, ours', [(0, 8), (8, 0)])
def test_weights_with_and_without_experts_do_not_begin_each_other(theirs, ours):
  models = {0: dict(qk_norm='all'), 8: FAMILY_OF['olmoe']}
  here, there = (run_config({**models[count]}, 'somewhere') for count in (ours, theirs))
  with pytest.raises(ConfigError, match=f'another model: model.experts is {theirs} there, {ours} here. To begin with '
                     f'it, add --config.model.experts={theirs}.$'):
    model_folders.check_fits(here, there.model.to_dict())


def test_begins_with_a_folder_on_any_mesh(tmp_path):
  folder = folder_of('llama_grouped', tmp_path / 'a')
  values, params = model_folders.read(folder, vocab_size=104)
  config = run_config(values, folder)
  for axes in (dict(), dict(fsdp=4, tensor=2)):
    assert same(jax.device_get(start(config, **axes)), params)
  other = run_config(dict(values, d_ff=64, rope_theta=1e4, vocab_size=96, dropout=0.1, max_positions=7), folder)
  with pytest.raises(ConfigError) as e:
    start(other)
  assert 'model.d_ff is 50 there, 64 here' in str(e.value) and 'dropout' not in str(e.value)
  assert 'max_positions' not in str(e.value)
  for override in str(e.value).split('add ')[1].rstrip('.').split():
    key, value = override.removeprefix('--config.model.').split('=')
    other.model[key] = type(other.model[key])(float(value))
  assert other.model.vocab_size == 101
  assert same(jax.device_get(start(other)), model_folders.read(folder)[1])
  with pytest.raises(ConfigError, match='is neither the workdir of a run'):
    start(run_config(values, tmp_path))


# --- Whole runs there and back --------------------------------------------------------------------


def vocabulary_of(file, **changes):
  """A vocabulary trained on this file, kept in `file`; bytes unless `changes` of config.vocabulary say otherwise."""
  spec = base().vocabulary
  spec.update(**{**dict(name='bytes', sentinels=0), **changes})
  return vocabulary_lib.train(spec, [open(__file__, encoding='utf-8').read()] * 3, file)


def widened(name, path, size, vocabulary, style):
  """A folder of a case with a vocabulary of ours."""
  values, params = model_folders.read(folder_of(name, path / 'narrow'), vocab_size=size)
  model_folders.write(path / 'hf', values, params, vocabulary, style=style, length=40)
  return path / 'hf', params


@pytest.mark.parametrize('name,style,kind,prompt', [
    ('llama', 'document', dict(), 'def '),
    ('t5_v1_1', 'encoder', dict(name='sentencepiece', size=500, sentinels=12), 'a <extra_id_0>'),
    ('qwen2_moe', 'document', dict(), 'def '),
    ('bert', 'fill_row', dict(name='characters', sentinels=2), 'de<mask> x')])
def test_import_generate_and_export(name, style, kind, prompt, tmp_path):
  vocabulary = vocabulary_of(tmp_path / 'vocabulary', **kind)
  folder, params = widened(name, tmp_path, 512, vocabulary, style)
  c = runs.import_folder(folder, tmp_path / 'run', ['batch_size=4'])
  assert c.batch_size == 4 and c.init_from == str(folder)
  run = trained_model.load(tmp_path / 'run')
  assert run.step == 0 and same(jax.device_get(run.params), params)
  assert run.vocabulary.name == ('sentencepiece' if kind.get('name') == 'sentencepiece' else 'huggingface')
  assert tokenizer_export.difference(vocabulary, run.vocabulary) == ''
  text, = run.generate([prompt], tokens=6, temperature=0)
  assert isinstance(text, str) and text == run.generate([prompt], tokens=6, temperature=0)[0]
  runs.export_run(tmp_path / 'run', tmp_path / 'out')
  before, after = (read_file(path / 'model.safetensors') for path in (folder, tmp_path / 'out'))
  assert before.keys() == after.keys() and all(np.array_equal(before[k], after[k]) for k in before)
  a, b = (json.loads((path / 'config.json').read_text()) for path in (folder, tmp_path / 'out'))
  assert a == b
  for override, problem in (('model.d_model=72', 'model.d_model is 36 there, 72 here'), ('modle.x=1', 'unknown key')):
    with pytest.raises(ConfigError, match=problem):
      runs.import_folder(folder, tmp_path / 'bad', [override])
  with pytest.raises(ConfigError, match='holds a run already'):
    runs.import_folder(folder, tmp_path / 'run')
  with pytest.raises(ConfigError, match='holds files already'):
    runs.export_run(tmp_path / 'run', tmp_path / 'out')
  # A run may begin with this one, unless its vocabulary is another.
  sized = config_lib.resolve(c)
  sized.init_from = str(tmp_path / 'run')
  assert same(jax.device_get(start(sized, run.vocabulary)), params)
  other = vocabulary_of(tmp_path / 'other', name='bytes' if name == 'bert' else 'characters')
  with pytest.raises(ConfigError, match=f'another vocabulary.*vocabulary.path={tmp_path}/run/vocabulary'):
    start(sized, other)


@pytest.mark.parametrize('name,prefix', [('bert', 'bert.'), ('camembert', 'roberta.'), ('electra', 'electra.')])
def test_an_encoder_without_a_head_begins_with_a_new_one_when_asked(name, prefix, tmp_path):
  """Such as a sentence encoder: a bare model, with the pooler of its embeddings."""
  def bare(config, made):
    for key in list(made):
      weights = made.pop(key)
      if key.startswith(prefix):
        made[key.removeprefix(prefix)] = weights
    if name != 'electra':
      made['pooler.dense.weight'] = np.ones((36, 36), np.float32)
  folder = folder_of(name, tmp_path / 'hf', bare)
  with pytest.raises(CheckpointError, match='main.py import --fresh_head'):
    model_folders.read(folder)
  vocabulary = vocabulary_of(tmp_path / 'vocabulary', name='characters', sentinels=2)
  files, _ = tokenizer_export.files(vocabulary, 'fill_row', 40)
  for file, content in files.items():
    (folder / file).write_bytes(content)
  c = runs.import_folder(folder, tmp_path / 'run', ['model.vocab_size=101'], fresh_head=True)
  assert c.init_from == str(tmp_path / 'run')
  run = trained_model.load(tmp_path / 'run')
  params = jax.device_get(run.params)
  head = params.pop('head')
  _, whole = model_folders.read(folder_of(name, tmp_path / 'whole'))
  del whole['head']
  assert same(params, whole)
  assert head['transform']['w'].std() > 0 and not head['b'].any() and (head['norm']['scale'] == 1).all()
  assert isinstance(run.generate(['de<mask> x'])[0], str)
  # A run begins with what was imported, head and all, and a folder with half of a head is not that of an encoder.
  sized = config_lib.resolve(c)
  assert same(jax.device_get(start(sized, run.vocabulary))['head'], head)
  def half(config, made):
    del made[next(key for key in made if key.endswith('ense.bias') and not key.startswith(prefix))]
  with pytest.raises(CheckpointError, match='dense.bias is missing'):
    model_folders.model_of(folder_of(name, tmp_path / 'half', half), fresh_head=True)


def test_the_commands(tmp_path):
  folder, _ = widened('llama', tmp_path, 264, vocabulary_of(tmp_path / 'vocabulary'), 'document')
  def main(*args):
    return subprocess.run([sys.executable, 'main.py', *args], cwd=ROOT, capture_output=True, text=True,
                          env=dict(os.environ, XLA_FLAGS=COMPILED_FAST))
  run = main('import', f'--folder={folder}', f'--workdir={tmp_path}/run', '--config.model.vocab_size=272')
  assert run.returncode == 0, run.stderr
  assert 'is ready' in run.stdout
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['model']['vocab_size'] == 272
  out = main('export', f'--workdir={tmp_path}/run', f'--out={tmp_path}/out')
  assert out.returncode == 0, out.stderr
  assert read_file(tmp_path / 'out' / 'model.safetensors')['lm_head.weight'].shape == (272, 36)
  assert main('export', f'--workdir={tmp_path}/run').returncode == 2


def test_sentinels_above_a_model_are_found_again(tmp_path):
  """T5's SentencePiece model has none of its own: they follow its pieces, the last being <extra_id_0>."""
  plain = vocabulary_of(tmp_path / 'plain', name='sentencepiece', size=400, sentinels=0)
  vocabulary = vocabulary_of(tmp_path / 'more', name='sentencepiece', path=str(tmp_path / 'plain'), sentinels=7)
  assert vocabulary.size == 407 and vocabulary.sentinel(0) == 406
  folder, _ = widened('t5', tmp_path, 512, vocabulary, 'encoder')
  spec, found = folder_tokenizers.find_vocabulary(folder)
  assert spec['sentinels'] == 7 and found.fingerprint == vocabulary.fingerprint != plain.fingerprint
  assert HuggingFace((folder / 'tokenizer.json').read_bytes()).sentinel(2) == vocabulary.sentinel(2)
  (folder / 'tokenizer_config.json').unlink()
  assert folder_tokenizers.find_vocabulary(folder)[0]['sentinels'] == 7
  (folder / 'tokenizer.json').unlink()
  assert folder_tokenizers.find_vocabulary(folder)[0]['sentinels'] == 100  # T5's own


# --- Tokenizers -----------------------------------------------------------------------------------

KINDS = dict(unigram=dict(name='sentencepiece', size=500, sentinels=8),
             bpe=dict(name='sentencepiece', size=500, sentinels=8, algorithm='bpe', normalization='identity'),
             bytes=dict(sentinels=3), characters=dict(name='characters', sentinels=3))


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """{kind: (a vocabulary, the same read back from its tokenizer.json)}."""
  made = {}
  for kind, changes in KINDS.items():
    vocabulary = vocabulary_of(tmp_path_factory.mktemp(kind) / 'vocabulary', **changes)
    files, notes = tokenizer_export.files(vocabulary, 'document', 40)
    assert not notes and ('spiece.model' in files) == (changes.get('name') == 'sentencepiece')
    made[kind] = vocabulary, HuggingFace(files['tokenizer.json'])
  return made


def test_other_sentinels_are_another_vocabulary(pairs, tmp_path):
  more = vocabulary_of(tmp_path / 'more', name='bytes', sentinels=4)
  assert tokenizer_export.difference(pairs['bytes'][0], more) == ''  # the first ones are the same
  vocabulary_of(tmp_path / 'plain', name='sentencepiece', size=400, sentinels=0)
  three, five = (vocabulary_of(tmp_path / f'{n}', name='sentencepiece', path=str(tmp_path / 'plain'), sentinels=n)
                 for n in (3, 5))
  assert tokenizer_export.difference(three, five) == 'mask_id is 404, not 402'


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.text(st.sampled_from('aeinot rsdl.,()=_\n\'é€日🙂0123:XYZ"'), max_size=40))
def test_tokenizer_json_gives_the_same_ids(pairs, kind, text):
  ours, theirs = pairs[kind]
  assert theirs.encode(text).tolist() == ours.encode(text).tolist()
  assert theirs.size == ours.size and theirs.sentinel(2) == ours.sentinel(2)
  assert (theirs.pad_id, theirs.eos_id, theirs.unk_id) == (ours.pad_id, ours.eos_id, ours.unk_id)
  if not {ours.unk_id} & set(ours.encode(text).tolist()):
    assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))


def test_a_tokenizer_that_would_differ_is_not_written(pairs, monkeypatch):
  wrong = pairs['bytes'][1].content
  monkeypatch.setattr(tokenizer_export, '_build', lambda *_: wrong)
  files, notes = tokenizer_export.files(pairs['unigram'][0])
  assert list(files) == ['spiece.model'] and 'No tokenizer.json was written, because in it' in notes[0]
