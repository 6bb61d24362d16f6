"""A small UL2: one encoder-decoder on seven denoisers at once, each announced by a mode token.

    python main.py --config=configs/ul2_tiny.py
    python main.py generate --workdir=runs/ul2_tiny --prompt='[S2S] class Reader:' --temperature=0.5

Hardware: a laptop, 2 CPU cores. Time: under 6 minutes, vocabulary and data included.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='python_docs', validation_fraction=0.01, seq_len=80)
  c.vocabulary.update(size=1024, algorithm='bpe', normalization='identity', sentinels=32,
                      train_characters=2_000_000)
  c.objective.name = 'ul2'
  c.model.update(name='encoder_decoder', position='relative', activation='geglu',
                 d_model=128, num_layers=2, num_heads=4, d_ff=384, dtype='float32', tie_embeddings=True,
                 qk_norm='head', scan_layers=False)
  c.batch_size = 24
  # Muon needs a third of AdamW's steps here.
  c.optimizer.update(name='muon', learning_rate=3e-2, weight_decay=0.1, extra=dict(adam_scale=0.3))
  c.schedule.warmup_steps = 100
  c.stop.tokens = 1000 * 24 * 80
  c.evaluate.update(every=400, batches=10)
  c.checkpoint.every = 400
  c.sample.update(prompts=('[NLG]class Reader:\n    def read(<extra_id_0>\n        return self.file\n',
                           '[S2S]class Reader:\n    def __init__(self, '),
                  tokens=48, temperature=0.5)
  return smoke(c) if arg == 'smoke' else c
