"""Text to text: the first sentence of a docstring from the source of a Python function, as a summary.

    python main.py --config=configs/seq2seq_tiny.py
    python main.py generate --workdir=runs/seq2seq_tiny --temperature=0 \\
        --prompt='summarize: def close(self): self.file.close()'

Hardware: a laptop, 2 CPU cores. Time: under 6 minutes, vocabulary and data included.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='python_functions', inputs='summarize: {source}', targets='{docstring}',
                validation_fraction=0.02, packing='best_fit', seq_len=256, target_len=64)
  c.vocabulary.update(size=1024, algorithm='bpe', normalization='identity', sentinels=16,
                      train_characters=2_000_000)
  c.objective.name = 'seq2seq'
  c.model.update(name='encoder_decoder', position='relative', activation='geglu',
                 d_model=128, num_layers=2, num_heads=4, d_ff=384, dtype='float32',
                 tie_embeddings=True, scan_layers=False)
  c.batch_size = 8
  # Muon needs a third of AdamW's steps here.
  c.optimizer.update(name='muon', learning_rate=3e-2, weight_decay=0.1, extra=dict(adam_scale=0.3))
  c.schedule.warmup_steps = 100
  c.stop.tokens = 900 * 8 * 256
  c.evaluate.every = 300
  c.checkpoint.every = 600
  c.sample.update(prompts=('summarize: def close(self):\n    self.file.close()\n',
                           'summarize: def is_empty(self):\n    return len(self.items) == 0\n'),
                  tokens=32, temperature=0.0)
  return smoke(c) if arg == 'smoke' else c
