"""mT5 base: T5 v1.1 on many languages, rows of 1,024, a vocabulary of 250,000.

    python main.py --config=configs/mt5_base.py --workdir=gs://BUCKET/mt5_base

Hardware: a TPU v5e-128, weeks. Expected: no loss was published. Lengths of 1,024 and 229 are those of its gin file;
250,000 pieces and a million steps of 1,024 rows those of Xue et al. 2020, arXiv 2010.11934, as quoted by others.
Not verified here. It samples languages by count^0.3, this config takes mC4 as it comes.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/multilingual', validation='hash', validation_fraction=0.0001, seq_len=1024,
                append_eos=False)
  c.vocabulary.update(size=250_100, sentinels=100)
  c.objective.update(name='span_corruption', noise_density=0.15, mean_span=3.0)
  c.model.update(
      name='encoder_decoder', position='relative', scale_attention=False, activation='geglu', init='t5',
      vocab_size=250_112, d_model=768, num_layers=12, num_heads=12, d_ff=2048, remat='minimal')
  c.batch_size = 1024
  c.loss.z_loss = 1e-4
  c.optimizer.update(name='adafactor', learning_rate=0.01, clip_norm=0.0)
  c.schedule.update(name='rsqrt', timescale=10_000)
  c.stop.tokens = 1_000_000 * 1024 * 1024
  c.params_expected = 582_401_280
  c.evaluate.update(every=5000, batches=10)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
