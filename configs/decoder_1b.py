"""A 1.1B decoder at the compute-optimal 21B tokens of C4.

    python main.py prepare --config=configs/decoder_1b.py
    python main.py --config=configs/decoder_1b.py --workdir=gs://BUCKET/decoder_1b

Hardware: a TPU v5e-64 or larger. Expected: loss near 2.5 after 20,400 steps (MaxText's
test_convergence_1b_params.sh, same shape and data, its own vocabulary of 32,000); the law of
Hoffmann et al. 2022 gives 2.58 for 1B parameters and 20B tokens. Not verified here.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=2048, document_mask=True)
  c.vocabulary.update(size=32_000, sentinels=100)
  c.model.update(
      vocab_size=32_128, d_model=2048, num_layers=16, num_heads=16, head_dim=128, d_ff=7168,
      activation='swiglu', norm='rmsnorm', position='rope', remat='minimal')
  c.batch_size = 512
  c.microbatches = 2  # 1 leaves no room on a v5e-64
  c.optimizer.update(learning_rate=3e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=2040, final_scale=0.1)
  c.loss.z_loss = 1e-4
  c.stop.tokens = 20_400 * 512 * 2048
  c.params_expected = 1_104_742_400
  c.reference = dict(metric='training nll', value=2.5,
                     source='MaxText, test_convergence_1b_params.sh')
  c.evaluate.update(every=1000, batches=50)
  c.checkpoint.update(every=500, keep_every=5000)
  return smoke(c) if arg == 'smoke' else c
