"""nanodo's default decoder: 6 layers, 512 wide, learned positions, lm1b's sentences joined and cut.

    python main.py --config=configs/nanodo_small.py --workdir=gs://BUCKET/nanodo

Hardware: one GPU or a TPU v5e-8, hours. Expected: nanodo publishes no losses; settings are those of its
configs/default.py and optimizer.py (github.com/google-deepmind/nanodo). Not verified here. Differences: it puts a
token before each document, we only one after it; positions and outputs of blocks start larger there, and its
warm-up begins at a tenth of the rate.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:lm1b', validation='test', seq_len=512, document_mask=False)
  c.vocabulary.update(size=32_000, sentinels=0)
  c.model.update(
      vocab_size=32_000, d_model=512, num_layers=6, num_heads=8, d_ff=2048, activation='gelu_tanh',
      norm='layernorm', position='learned', max_positions=512, tie_embeddings=True)
  c.batch_size = 256
  c.optimizer.update(learning_rate=1.6e-3, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.1, decay_mask='.',
                     clip_norm=0.0)  # everything decays, norms too
  c.schedule.update(warmup_steps=1000, final_scale=0.1)
  c.stop.tokens = 100_000 * 256 * 512
  c.params_expected = 35_527_168
  c.evaluate.update(every=1000, batches=50)
  c.checkpoint.every = 1000
  return smoke(c) if arg == 'smoke' else c
