"""Translation from English to German, or back with :deen: the large Transformer of Flax's examples on WMT 17.

    python main.py prepare --config=configs/wmt_ende.py
    python main.py --config=configs/wmt_ende.py:deen --workdir=gs://BUCKET/wmt_deen

Hardware and time: 13 h 18 min on a TPU v3-8, 100,000 steps. Expected: BLEU 32.87 on the test set of WMT 14 with 4
beams (README of flax/examples/wmt), which is from German to English, whatever its title says: its input_pipeline.py
reads the languages of de-en in that order. Not verified here. Ours begins with T5's initial scales, and has biases
in attention too, which its models.py leaves out.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  languages = ('{de}', '{en}') if arg == 'deen' else ('{en}', '{de}')
  c.data.update(source='tfds:wmt17_translate/de-en', inputs=languages[0], targets=languages[1],
                validation='validation', packing='best_fit', seq_len=256, target_len=256)
  c.vocabulary.update(size=32_000, sentinels=0)
  c.objective.name = 'seq2seq'
  c.model.update(
      name='encoder_decoder', position='sinusoidal', activation='relu', norm='layernorm', use_bias=True,
      tie_embeddings=True, head='scaled', init='t5', vocab_size=32_000, d_model=1024, num_layers=6, num_heads=16,
      d_ff=4096, dropout=0.1)
  c.batch_size = 256
  c.loss.label_smoothing = 0.1
  c.optimizer.update(learning_rate=2e-3, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.0, clip_norm=0.0)
  c.schedule.update(name='rsqrt', warmup_steps=1000, timescale=1000)
  c.stop.tokens = 100_000 * 256 * 256
  c.params_expected = 209_129_472
  if arg == 'deen':
    c.reference = dict(metric='BLEU', value=32.87, source='flax/examples/wmt, README')
  c.evaluate.update(every=2000, batches=20)
  c.checkpoint.every = 5000
  c.sample.update(prompts=('Mein Hund heißt Sam.' if arg == 'deen' else 'My dog is named Sam.',), temperature=0.0)
  return smoke(c) if arg == 'smoke' else c
