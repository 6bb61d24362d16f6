"""decoder_tiny on longer rows: 128 tokens become 256, then 512, on the documentation inside every Python.

    python main.py --config=configs/decoder_tiny.py
    python main.py --config=configs/extend_tiny.py
    python main.py --config=configs/extend_tiny.py:512

Hardware: a laptop, 2 CPU cores. Time: minutes each. Rotary positions are scaled as those of Llama 3.1 are; `:plain` is
the same as none without scaling. docs/extend.md says what to look at.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  length = 512 if arg == '512' else 256
  c.init_from = 'runs/extend_tiny' if arg == '512' else 'runs/decoder_tiny'
  c.data.update(source='python_docs', validation_fraction=0.01, seq_len=length)
  c.vocabulary.update(path='runs/decoder_tiny/vocabulary', size=2048, algorithm='bpe', normalization='identity')
  c.model.update(d_model=192, num_layers=4, num_heads=3, dtype='float32', tie_embeddings=True, scan_layers=False)
  if arg != 'plain':
    c.model.rope_scaling = dict(name='llama3', factor=4.0, original_positions=128, low_freq_factor=1.0,
                                high_freq_factor=4.0)
  c.batch_size = 2048 // length
  c.optimizer.update(learning_rate=1e-3, weight_decay=0.1)
  c.schedule.update(name='linear', warmup_steps=20, final_scale=0.0)
  c.stop.tokens = '300K'
  c.evaluate.every = 50
  c.checkpoint.every = 100
  c.sample.prompts = ('class ', '"""Return the ', 'def ')
  return smoke(c) if arg == 'smoke' else c
