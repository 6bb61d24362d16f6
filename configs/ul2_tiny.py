"""A small UL2: one encoder-decoder on seven denoisers at once, each announced by a mode token.

    python main.py --config=configs/ul2_tiny.py
    python main.py generate --workdir=runs/ul2_tiny --prompt='[S2S] class Reader:' --temperature=0.5

Hardware: a laptop, 2 CPU cores. Time: under 6 minutes, vocabulary and data included.
"""
from configs.base import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='python_docs', validation_fraction=0.01, seq_len=96)
  c.vocabulary.update(size=1024, algorithm='bpe', normalization='identity', sentinels=32,
                      train_characters=2_000_000)
  c.objective.name = 'ul2'
  c.model.update(name='encoder_decoder', position='relative', activation='geglu',
                 d_model=128, num_layers=2, num_encoder_layers=2, num_heads=2, d_ff=384, dtype='float32',
                 tie_embeddings=True, scan_layers=False)
  c.batch_size = 16
  c.optimizer.update(learning_rate=4e-3, weight_decay=0.1)
  c.schedule.warmup_steps = 100
  c.stop.tokens = 1200 * 16 * 96
  c.evaluate.update(every=400, batches=8)
  c.checkpoint.every = 600
  c.sample.update(prompts=('[NLU]for i<extra_id_0> range(10):\n    print(<extra_id_1>)\n',
                           '[S2S]class Reader:\n    def __init__('),
                  tokens=48, temperature=0.5)
  return smoke(c) if arg == 'smoke' else c
