"""What may change between two starts of a run: advice that is given works, and where none works none is given."""
import json
import re

import jax
import numpy as np
import pytest

from t5like import config as config_lib, sharding
from t5like.config import resumable
from t5like.config.values import DEFAULTS
from t5like.errors import ConfigError
from t5like.model import models
from t5like.optim import from_config
from t5like.training import loop, step as step_lib
from tests import tiny
from tests.config.test_config import message

# Another value of each key that a tiny decoder can be trained with; `None`: only together with other keys.
OTHER = {
    'seed': 3, 'objective.name': None, 'objective.noise_density': 0.3, 'objective.mean_span': 5.0,
    'objective.roll': True, 'objective.masking': 'roberta', 'objective.whole_word': True, 'objective.cls_sep': True,
    'objective.predictions': 3, 'objective.denoisers': ('[X] 1 3 0.15',),
    'data.seq_len': 16, 'data.target_len': 8, 'data.append_eos': False, 'data.document_mask': False,
    'data.packing': 'none', 'data.mixture_rates': 'examples', 'data.mixture_cap': None,
    'data.mixture_temperature': None,
    'data.stages': None, 'data.mixture': None, 'data.overlong': 'drop', 'data.deduplicate': True,
    'model.name': None, 'model.vocab_size': 272, 'model.d_model': 64, 'model.num_layers': 3,
    'model.num_encoder_layers': 3, 'model.num_heads': 2, 'model.num_kv_heads': 4, 'model.head_dim': 16,
    'model.d_ff': 32,
    'model.activation': 'gelu', 'model.block': 'parallel', 'model.norm': 'layernorm_plain', 'model.norm_eps': 1e-5,
    'model.use_bias': True, 'model.embed_norm': True, 'model.position': 'learned', 'model.rope_theta': 1e5,
    'model.rope_fraction': 0.5, 'model.max_positions': 64, 'model.num_types': 2, 'model.tie_embeddings': True,
    'model.head': None, 'model.scale_attention': False, 'model.qk_norm': 'head', 'model.logit_softcap': 30.0,
    'model.dropout': 0.1, 'model.dropout_style': 't5', 'model.init': 'gpt2', 'model.dtype': 'bfloat16',
    'model.prefix_mask': False, 'model.lora_rank': 2, 'model.lora_alpha': 8.0, 'model.lora_projections': None,
    'loss.z_loss': 1e-4, 'loss.label_smoothing': 0.1, 'optimizer.name': 'lion', 'optimizer.b1': 0.5,
    'optimizer.b2': 0.5, 'optimizer.eps': 1e-6, 'optimizer.weight_decay': 0.0, 'optimizer.decay_mask': 'scale$',
    'optimizer.clip_norm': 0.0, 'optimizer.freeze': ('embed',), 'optimizer.multipliers': ('embed=0.5',),
    'optimizer.extra': dict(mu_dtype='bfloat16'), 'adapt.source': 'encoder', 'adapt.encoder': 'fresh',
    'adapt.encoder_source': 'decoder', 'adapt.decoder': 'fresh', 'adapt.cross': 'fresh', 'adapt.head': 'fresh',
    'adapt.tokens': 'matched', 'adapt.warm_up_steps': 2, 'adapt.warm_up': ('embed',), 'model.encoder_embed': None,
    'model.layers': None, 'model.window': None, 'model.window_after': None, 'model.encoder_window': None,
    'model.local_rope_theta': None,
    'model.rope_scaling': None, 'model.qkv_bias': True, 'model.embed_scale': 'sqrt_d_model', 'model.query_scale': 0.1,
    'model.attention_softcap': 30.0, 'model.attention_sinks': 'head', 'model.quantization': 'int8',
    'model.experts': 4, 'model.experts_per_token': None, 'model.expert_d_ff': None, 'model.expert_capacity': None,
    'model.shared_experts': None, 'model.shared_gate': None, 'model.sparse_every': None, 'model.dense_first': None,
    'model.router': None, 'model.router_balance': None, 'model.router_bias': None, 'model.router_z_loss': None,
    'model.router_jitter': None, 'optimizer.router_bias_rate': 1e-2, 'optimizer.ema': 0.99,
}


def with_value(c, key, value):
  c = c.copy_and_resolve_references().unlock()
  section, _, name = key.rpartition('.')
  (c[section] if section else c)[name] = value
  return c.lock()


def state_of(config):
  """{path: (shape, dtype)} of the state under a config, and its text in `repr` of the tree's structure."""
  config = config_lib.resolve(config)
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    model, _ = models.build_model(config)
    tx = from_config.at_rates(from_config.build(config.optimizer, lambda step: 0.0 * step, model.parameters),
                        from_config.rates(config.optimizer, model.parameters))
    state = jax.eval_shape(lambda: step_lib.init_state(model, tx, 0, ema=config.optimizer.ema))
  return {from_config.path_name(path): (x.shape, x.dtype) for path, x in jax.tree_util.tree_leaves_with_path(state)}


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  return tiny.config(tmp_path_factory.mktemp('text'))


def test_every_key_that_may_not_change_unasked_is_tried():
  free = [key for key in DEFAULTS if not resumable.under(key, resumable.ALLOWED)]
  others = {'objective', 'data', 'vocabulary'}  # what is prepared, and sizes of rows: no arrays of the state
  assert {key for key in free if key.partition('.')[0] not in others} <= set(OTHER)
  assert set(OTHER) <= set(DEFAULTS)


@pytest.mark.parametrize('key', [key for key, value in OTHER.items() if value is not None])
def test_advice_works_or_none_is_given(key, config):
  """Permission is advised exactly for keys under which a checkpoint's arrays are those of the new state."""
  new = with_value(config, key, OTHER[key])
  said = message(config_lib.check_resumable, config, new, 'RUN')
  assert key in said
  advised = re.search(r'--config\.allow_changed=(\S+);', said)
  same = state_of(config) == state_of(new) if not key.startswith('data.') else True
  if advised:
    assert same, 'what is advised would not restore'
    config_lib.check_resumable(config, with_value(new, 'allow_changed', advised[1]), 'RUN')
  else:
    assert key in (*resumable.OF_PARAMETERS, *resumable.OF_THE_OPTIMIZER) and '--workdir' in said
    assert ('init_from' in said) == key.startswith('optimizer.')


@pytest.mark.parametrize('key', ['data.source', 'data.field', 'data.validation_fraction', 'data.max_documents'])
def test_one_permission_is_enough_for_other_data(key, config):
  other = {'data.source': 'copy:8', 'data.field': 'body', 'data.validation_fraction': 0.5, 'data.max_documents': 7}
  new = with_value(config, key, other[key])
  assert '--config.allow_changed=data;' in message(config_lib.check_resumable, config, new, 'RUN')


def run(config, workdir):
  return loop.train(config, workdir, 'test', jax.devices()[:1])


def test_what_errors_advise_is_done(tmp_path):
  """A run is refused another optimizer and frozen parameters even with permission, begins anew with its weights, and
  resumes with another loss, data and seed when permitted."""
  settings = dict(evaluate=dict(every=0), checkpoint=dict(every=0))
  c = tiny.config(tmp_path, steps=2, **settings)
  run(c, tmp_path / 'run')
  for key, value in (('optimizer.freeze', ('embed',)), ('optimizer.name', 'lion'), ('model.qk_norm', 'head'),
                     ('optimizer.extra', dict(mu_dtype='bfloat16', nesterov=True))):
    other = with_value(tiny.config(tmp_path, steps=4, **settings), key, value)
    with pytest.raises(ConfigError, match=key):
      run(other, tmp_path / 'run')
    if key != 'optimizer.extra':  # of the same shapes, in another number format: Orbax converts
      with pytest.raises(ConfigError, match=f'{key} decides'):
        run(with_value(other, 'allow_changed', key), tmp_path / 'run')
  frozen = with_value(tiny.config(tmp_path, steps=2, init_from=str(tmp_path / 'run'), **settings), 'optimizer.freeze',
                      ('embed',))
  assert run(frozen, tmp_path / 'frozen')['step'] == 2
  other = tiny.config(tmp_path, steps=4, seed=1, loss=dict(z_loss=1e-4), data=dict(validation_fraction=0.2), **settings)
  with pytest.raises(ConfigError) as e:
    run(other, tmp_path / 'run')
  advised = re.search(r'--config\.allow_changed=(\S+);', str(e.value))[1]
  result = run(with_value(other, 'allow_changed', advised), tmp_path / 'run')
  assert result['step'] == 4 and np.isfinite(result['validation']['nll'])
  assert json.loads((tmp_path / 'run/result.json').read_text())['step'] == 4
