"""What single families say of config.model in keys of their own, read and written.

A reader takes (values of config.json, values of config.model) and sets more of the latter; a writer takes config.model
and returns values of config.json.
"""
from collections.abc import Callable, Mapping
from typing import Any

from t5like import choices
from t5like.errors import ConfigError
from t5like.huggingface import layer_kinds, sparse_layers

Values = dict[str, Any]  # of config.model, or of a config.json
Model = Mapping[str, Any]  # config.model, every size known

LOCAL = 'sliding_attention'
GLOBAL = 'full_attention'
SCALES = {True: 'sqrt_d_model', False: 'none'}  # whether BART's scale_embedding is set -> model.embed_scale
CAPS = dict(final_logit_softcapping='logit_softcap', attn_logit_softcapping='attention_softcap')


def _read_neox(hf: Values, values: Values) -> None:
  is_parallel = hf.get('use_parallel_residual', True)
  values['block'] = 'parallel' if is_parallel else 'pre_norm'


def _write_neox(model: Model) -> Values:
  is_parallel = choices.BLOCKS[model['block']].parallel
  return dict(use_parallel_residual=is_parallel, attention_dropout=model['dropout'])


def _write_gpt2(model: Model) -> Values:
  return dict(attn_pdrop=model['dropout'], embd_pdrop=model['dropout'])


def _write_bert(model: Model) -> Values:
  return dict(attention_probs_dropout_prob=model['dropout'])


def _read_t5(hf: Values, values: Values) -> None:
  # transformers 5 ties whatever the file says, and remembers here what it said.
  is_scaled = bool(hf.get('scale_decoder_outputs', values['tie_embeddings']))
  values['head'] = 'scaled' if is_scaled else 'linear'
  values['tie_embeddings'] = is_scaled


def _read_mt5(hf: Values, values: Values) -> None:
  """Its head is never scaled; whether it is tied, the names of weights say."""
  values['head'] = 'linear'
  values['tie_embeddings'] = False


def _write_t5(model: Model) -> Values:
  return dict(is_encoder_decoder=True)


def _read_bart(hf: Values, values: Values) -> None:
  """Its table of positions has rows more than there are positions; both stacks of ours have the same sizes."""
  for key in ('attention_heads', 'ffn_dim'):
    of_encoder = hf[f'encoder_{key}']
    of_decoder = hf.get(f'decoder_{key}', of_encoder)
    if of_encoder != of_decoder:
      raise ConfigError(f'encoder_{key}={of_encoder} and decoder_{key}={of_decoder} in config.json: bart models can '
                        'only be read where both are the same.')
  values['max_positions'] += choices.POSITIONS[values['position']].first_row
  values['embed_scale'] = SCALES[hf.get('scale_embedding', False)]


def _write_bart(model: Model) -> Values:
  return dict(
      max_position_embeddings=model['max_positions'] - choices.POSITIONS[model['position']].first_row,
      decoder_attention_heads=model['num_heads'],
      decoder_ffn_dim=model['d_ff'],
      scale_embedding=model['embed_scale'] == SCALES[True],
      attention_dropout=model['dropout'],
      is_encoder_decoder=True,
  )


def _read_mistral(hf: Values, values: Values) -> None:
  """All layers have the window, whatever `layer_types` says."""
  layer_kinds.read({}, values, [LOCAL], hf.get('sliding_window', 4096))


def _read_phi3(hf: Values, values: Values) -> None:
  layer_kinds.read({}, values, [LOCAL], hf.get('sliding_window'))


def _read_electra(hf: Values, values: Values) -> None:
  """Embeddings of another size than the model's would need a projection."""
  size = hf.get('embedding_size', 128)
  width = values['d_model']
  if size != width:
    raise ConfigError(f'embedding_size={size} and hidden_size={width} in config.json: electra models can only be read '
                      'where both are the same.')


def _write_electra(model: Model) -> Values:
  return dict(_write_bert(model), embedding_size=model['d_model'])


def _write_mistral(model: Model) -> Values:
  return dict(sliding_window=model['window'] or None)


def _read_qwen(hf: Values, values: Values) -> None:
  """Layers from `max_window_layers` on have the window."""
  window = None
  if hf.get('use_sliding_window', False):
    window = hf.get('sliding_window', 4096)
  whole = min(hf.get('max_window_layers', 28), values['num_layers'])
  default = [GLOBAL] * whole + [LOCAL] * (values['num_layers'] - whole)
  layer_kinds.read(hf, values, default, window)


def _write_qwen(model: Model) -> Values:
  has_window = model['window'] > 0
  return dict(layer_kinds.write(model), use_sliding_window=has_window, max_window_layers=model['num_layers'])


def _read_qwen2_moe(hf: Values, values: Values) -> None:
  """Of the first `max_window_layers`, every second layer has the window, as transformers 5 reads it."""
  window = None
  if hf.get('use_sliding_window', False):
    window = hf.get('sliding_window', 4096)
  last = hf.get('max_window_layers', 28)
  default = []
  for layer in range(values['num_layers']):
    is_even = layer % 2 == 0
    has_window = is_even and layer < last
    default.append(layer_kinds.WINDOWED[has_window])
  layer_kinds.read(hf, values, default, window)
  sparse_layers.read_qwen(hf, values)
  sparse_layers.read_shared(hf, values)


def _write_qwen2_moe(model: Model) -> Values:
  return dict(
      _write_qwen(model),
      **sparse_layers.write_qwen(model),
      **sparse_layers.write_shared(model),
  )


def _read_qwen3_moe(hf: Values, values: Values) -> None:
  """All layers have the window, or none."""
  window = None
  if hf.get('use_sliding_window', False):
    window = hf.get('sliding_window', 4096)
  layer_kinds.read({}, values, [LOCAL], window)
  sparse_layers.read_qwen(hf, values)


def _write_qwen3_moe(model: Model) -> Values:
  has_window = model['window'] > 0
  return dict(
      _write_mistral(model),
      use_sliding_window=has_window,
      **sparse_layers.write_qwen(model),
  )


def _read_switch(hf: Values, values: Values) -> None:
  values['head'] = 'linear'
  if values['tie_embeddings']:
    values['head'] = 'scaled'
  sparse_layers.read_switch(hf, values)


def _read_smollm3(hf: Values, values: Values) -> None:
  """Layers without rotary positions have the window, if there is one."""
  interval = hf.get('no_rope_layer_interval', 4)
  rotated = hf.get('no_rope_layers')
  if rotated is None:
    rotated = [int((n + 1) % interval != 0) for n in range(values['num_layers'])]
  window = None
  if hf.get('use_sliding_window', False):
    window = hf.get('sliding_window')
  types = [layer_kinds.WINDOWED[not is_rotated] for is_rotated in rotated]
  layer_kinds.read(dict(hf, no_rope_layers=rotated), values, types, window)


def _write_smollm3(model: Model) -> Values:
  kinds = layer_kinds.of_layers(model)
  rotated = [int(choices.LAYERS[kind].rotated) for kind in kinds]
  return dict(layer_kinds.write(model), use_sliding_window=model['window'] > 0, no_rope_layers=rotated)


def _read_olmo3(hf: Values, values: Values) -> None:
  layer_kinds.read(hf, values, [LOCAL] * 3 + [GLOBAL], hf.get('sliding_window', 4096))


def _read_gemma2(hf: Values, values: Values) -> None:
  layer_kinds.read(hf, values, [LOCAL, GLOBAL], hf.get('sliding_window', 4096))
  _read_numbers_of_gemma(hf, values)


def _read_t5gemma(hf: Values, values: Values) -> None:
  """Tokens of the encoder see as many before them as the window has, those of the decoder one less."""
  longest = max(values['num_layers'], values['num_encoder_layers'])
  of_longest = dict(values, num_layers=longest)
  _read_gemma2(hf, of_longest)
  values.update(of_longest, num_layers=values['num_layers'], encoder_window=0)
  if values['window']:
    values['encoder_window'] = values['window'] + 1


def _read_gemma3(hf: Values, values: Values) -> None:
  period = hf.get('sliding_window_pattern', 6)
  layer_kinds.read(hf, values, [LOCAL] * (period - 1) + [GLOBAL], hf.get('sliding_window', 4096))
  _read_numbers_of_gemma(hf, values)


def _read_numbers_of_gemma(hf: Values, values: Values) -> None:
  scalar = hf.get('query_pre_attn_scalar', 256)
  values['query_scale'] = scalar ** -0.5
  if scalar == values['head_dim']:
    values['query_scale'] = 0.0
  for key in CAPS.values():
    values[key] = float(values[key] or 0)


def _write_gemma(model: Model) -> Values:
  scalar = model['head_dim']
  if model['query_scale']:
    scalar = round(model['query_scale'] ** -2)  # transformers takes whole numbers only
  values = dict(layer_kinds.write(model), query_pre_attn_scalar=scalar)
  for theirs, ours in CAPS.items():
    values[theirs] = model[ours] or None
  return values


def _read_modernbert(hf: Values, values: Values) -> None:
  """`local_attention` tokens are seen around a token, half of them on each side; the first layer is global."""
  period = hf.get('global_attn_every_n_layers', 3)
  side = hf.get('local_attention', 128) // 2
  layer_kinds.read(hf, values, [GLOBAL] + [LOCAL] * (period - 1), side + 1)


def _write_modernbert(model: Model) -> Values:
  values = layer_kinds.write(model)
  del values['sliding_window']
  if model['window']:
    values['local_attention'] = max(1, 2 * (model['window'] - 1))
  return values


READERS: dict[str, Callable[[Values, Values], None]] = dict(
    mistral=_read_mistral,
    qwen2=_read_qwen,
    qwen3=_read_qwen,
    mixtral=_read_phi3,
    olmoe=sparse_layers.read_router,
    qwen2_moe=_read_qwen2_moe,
    qwen3_moe=_read_qwen3_moe,
    switch_transformers=_read_switch,
    smollm3=_read_smollm3,
    olmo3=_read_olmo3,
    gemma2=_read_gemma2,
    gemma3_text=_read_gemma3,
    t5gemma=_read_t5gemma,
    gpt_neox=_read_neox,
    t5=_read_t5,
    mt5=_read_mt5,
    umt5=_read_t5,
    bart=_read_bart,
    mbart=_read_bart,
    phi3=_read_phi3,
    electra=_read_electra,
    modernbert=_read_modernbert,
)
WRITERS: dict[str, Callable[[Model], Values]] = dict(
    mistral=_write_mistral,
    qwen2=_write_qwen,
    qwen3=_write_qwen,
    mixtral=_write_mistral,
    olmoe=sparse_layers.write_router,
    qwen2_moe=_write_qwen2_moe,
    qwen3_moe=_write_qwen3_moe,
    switch_transformers=sparse_layers.write_switch,
    smollm3=_write_smollm3,
    olmo3=layer_kinds.write,
    gemma2=_write_gemma,
    gemma3_text=_write_gemma,
    t5gemma=_write_gemma,
    gpt2=_write_gpt2,
    gpt_neox=_write_neox,
    bert=_write_bert,
    roberta=_write_bert,
    camembert=_write_bert,
    t5=_write_t5,
    mt5=_write_t5,
    umt5=_write_t5,
    bart=_write_bart,
    mbart=_write_bart,
    phi3=_write_mistral,
    electra=_write_electra,
    modernbert=_write_modernbert,
)
