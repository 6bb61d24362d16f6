"""A small T5: an encoder and a decoder that restore spans cut out of Python's own source code.

    python main.py --config=configs/encdec_tiny.py
    python main.py generate --workdir=runs/encdec_tiny --prompt='def <extra_id_0>(self):'

Hardware: a laptop, 2 CPU cores. Time: under 6 minutes, vocabulary and data included.
"""
from configs.base import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='python_docs', validation_fraction=0.01, seq_len=128)
  c.vocabulary.update(size=1024, algorithm='bpe', normalization='identity', sentinels=16,
                      train_characters=2_000_000)
  c.objective.name = 'span_corruption'
  c.model.update(name='encoder_decoder', position='relative', activation='geglu',
                 d_model=128, num_layers=2, num_encoder_layers=3, num_heads=2, d_ff=384, dtype='float32',
                 tie_embeddings=True, scan_layers=False)
  c.batch_size = 16
  c.optimizer.update(learning_rate=4e-3, weight_decay=0.1)
  c.schedule.warmup_steps = 100
  c.stop.tokens = 1400 * 16 * 128
  c.evaluate.every = 350
  c.checkpoint.every = 700
  c.sample.update(prompts=('    def __init__(<extra_id_0>, name):\n        self.name<extra_id_1> name\n',
                           'for i<extra_id_0> range(10):\n    print(<extra_id_1>)\n'),
                  tokens=24, temperature=0.0)
  return smoke(c) if arg == 'smoke' else c
