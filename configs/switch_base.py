"""Switch Transformer, base: T5's base with experts in every second layer, of which a token passes one.

    python main.py --config=configs/switch_base.py:128 --workdir=gs://BUCKET/switch_base_128 \
        --config.mesh.fsdp=-1 --config.mesh.expert=8

The argument is the number of experts. Hardware: a TPU v5e-32 for the smaller, v5e-64 (64), v5e-64 (128), v5e-64 (256),
days; from 128 experts on, mesh.expert=8 is predicted to be several times faster than gathering all of a layer.
Expected: no loss of these models was read. Shapes and dropout are those of the released switch-base models; batch,
steps, balance and jitter those of Fedus et al. 2021 (arXiv 2101.03961: 2^20 tokens, 550,000 steps, 1e-2, 1e-2). Their
loss of balance is a mean over the tokens of a layer; ours is divided by the predicted tokens, 114 of a row beside 512
inputs, and so is the coefficient. Not represented: the capacity factor of 1.25 over groups of tokens (no token is
dropped here; --config.model.expert_capacity=64 is what transformers does), and initial weights of a tenth of the
variance. Not verified here.
"""
from t5like.config import base, smoke

SIZES = {  # number of experts: parameters, 222,903,552 of which T5's base has
    '8': 619_339_008, '16': 1_072_397_568, '32': 1_978_514_688, '64': 3_790_748_928, '128': 7_415_217_408,
    '256': 14_664_154_368}


def get_config(arg=''):
  c = base()
  size = arg if arg in ('8', '16', '32', '64', '128', '256') else '8'
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512, append_eos=False)
  c.vocabulary.update(size=32_100, sentinels=100)
  c.objective.update(name='span_corruption', noise_density=0.15, mean_span=3.0)
  c.model.update(
      name='encoder_decoder', position='relative', scale_attention=False, head='scaled', tie_embeddings=True,
      activation='relu', init='t5', dropout=0.1, dropout_style='t5', vocab_size=32_128, d_model=768, num_layers=12,
      num_heads=12, head_dim=64, d_ff=3072, remat='minimal')
  c.model.update(
      experts=int(size), experts_per_token=1, sparse_every=2, router='softmax', router_balance=0.01 * 114 / 512,
      router_jitter=0.01)
  c.batch_size = 2048
  c.loss.z_loss = 1e-4
  c.optimizer.update(name='adafactor', learning_rate=0.01, clip_norm=0.0)
  c.schedule.update(name='rsqrt', timescale=10_000)
  c.stop.tokens = 550_000 * 2048 * 512
  c.params_expected = SIZES[size]
  c.evaluate.update(every=5000, batches=10)
  c.checkpoint.update(every=1000, keep_every=50_000)
  c.sample.prompts = ('The <extra_id_0> walks in <extra_id_1> park',)
  return smoke(c) if arg == 'smoke' else c
