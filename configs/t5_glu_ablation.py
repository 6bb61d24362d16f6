"""GLU variants in T5: relu, gelu, swish, glu, bilinear, geglu, swiglu, reglu (Shazeer 2020, arXiv 2002.05202).

    python main.py --config=configs/t5_glu_ablation.py:geglu --workdir=gs://BUCKET/geglu

Hardware and time: a TPU v5e-16, hours per variant. Expected: log perplexity on held-out C4 after 65,536 steps of
1.997, 1.983, 1.994, 1.982, 1.960, 1.942, 1.944 and 1.953 in that order (its table 1, as quoted by others; standard
deviation of four runs about 0.005). Not verified here. The batch of 128 is nanoT5's.
"""
from t5like.config import base, smoke

LOSSES = dict(relu=1.997, gelu=1.983, swish=1.994, glu=1.982, bilinear=1.960, geglu=1.942, swiglu=1.944, reglu=1.953)


def get_config(arg=''):
  c = base()
  known = arg in ('relu', 'gelu', 'swish', 'glu', 'bilinear', 'geglu', 'swiglu', 'reglu')
  activation = arg if known else 'geglu'
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512, append_eos=False)
  c.vocabulary.update(size=32_100, sentinels=100)
  c.objective.update(name='span_corruption', noise_density=0.15, mean_span=3.0)
  c.model.update(
      name='encoder_decoder', position='relative', scale_attention=False, head='scaled', tie_embeddings=True,
      activation=activation, init='t5', vocab_size=32_128, d_model=768, num_layers=12, num_heads=12,
      d_ff=3072 if activation in ('relu', 'gelu', 'swish') else 2048)
  c.batch_size = 128
  c.loss.z_loss = 1e-4
  c.optimizer.update(name='adafactor', learning_rate=0.01, clip_norm=0.0)
  c.schedule.update(name='rsqrt_decay', timescale=10_000, decay_fraction=0.1, final_scale=0.0)
  c.stop.tokens = 65_536 * 128 * 512
  c.params_expected = 222_903_552
  c.reference = dict(metric='validation nll', value=LOSSES[activation],
                     source='Shazeer 2020, table 1, as quoted by others')
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.every = 2000
  return smoke(c) if arg == 'smoke' else c
