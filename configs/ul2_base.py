"""UL2 at base size: seven denoisers in one T5 v1.1, each announced by a mode token (Tay et al. 2022).

    python main.py --config=configs/ul2_base.py --workdir=gs://BUCKET/ul2_base

Hardware: a TPU v5e-32, days. Expected: no comparable figure was found. The denoisers are those of table 1; their
rates are those of a public run. Not verified here: the number of steps. 128 sentinels, for the densest
denoiser cuts 766 tokens into so many spans: with T5's 100 the published code takes words for sentinels.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512)
  c.vocabulary.update(size=32_128, sentinels=128)
  c.objective.name = 'ul2'
  c.model.update(
      name='encoder_decoder', position='relative', scale_attention=False, activation='geglu', init='t5',
      vocab_size=32_128, d_model=768, num_layers=12, num_heads=12, d_ff=2048)
  c.batch_size = 128
  c.loss.z_loss = 1e-4
  c.optimizer.update(name='adafactor', learning_rate=0.01, clip_norm=0.0)
  c.schedule.update(name='rsqrt', timescale=10_000)
  c.stop.tokens = 500_000 * 128 * 512
  c.params_expected = 247_577_856
  c.evaluate.update(every=5000, batches=5)
  c.checkpoint.update(every=2000, keep_every=50_000)
  c.sample.prompts = ('[NLU] The <extra_id_0> walks in <extra_id_1> park', '[S2S] Once upon a time')
  return smoke(c) if arg == 'smoke' else c
