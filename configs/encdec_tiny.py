"""A small T5: an encoder and a decoder that restore spans cut out of Python's own source code.

    python main.py --config=configs/encdec_tiny.py
    python main.py generate --workdir=runs/encdec_tiny --prompt='def __in<extra_id_0>__(self):'

Hardware: a laptop, 2 CPU cores. Time: under 6 minutes, vocabulary and data included.
"""
from configs.base import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='python_docs', validation_fraction=0.01, seq_len=64)
  c.vocabulary.update(name='bytes', sentinels=8)  # letters are learnt sooner than words
  c.objective.name = 'span_corruption'
  c.model.update(name='encoder_decoder', position='relative', activation='geglu',
                 d_model=128, num_layers=2, num_heads=4, d_ff=384, dtype='float32', tie_embeddings=True,
                 scan_layers=False)
  c.batch_size = 32
  # Muon needs a third of AdamW's steps here.
  c.optimizer.update(name='muon', learning_rate=3e-2, weight_decay=0.1, extra=dict(adam_scale=0.3))
  c.schedule.warmup_steps = 100
  c.stop.tokens = 1400 * 32 * 64
  c.evaluate.update(every=500, batches=50)
  c.checkpoint.every = 500
  c.sample.update(prompts=('    def __in<extra_id_0>__(se<extra_id_1>, name):\n        self.na<extra_id_2> = name\n',
                           'def close(self):\n    if self.file is N<extra_id_0>:\n        ret<extra_id_1>n None\n'),
                  tokens=24, temperature=0.0)
  return smoke(c) if arg == 'smoke' else c
