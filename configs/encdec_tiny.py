"""A small T5: an encoder and a decoder that restore spans cut out of Python's own source code.

    python main.py --config=configs/encdec_tiny.py
    python main.py generate --workdir=runs/encdec_tiny --prompt='class Reader:<extra_id_0>    def close(self):'

Spans are longer, and more of the text is cut out, than T5's: what a model this small can learn in minutes.

Hardware: a laptop, 2 CPU cores. Time: under 6 minutes, vocabulary and data included.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='python_docs', validation_fraction=0.01, seq_len=72)
  c.vocabulary.update(size=1024, algorithm='bpe', normalization='identity', sentinels=16,
                      train_characters=2_000_000)
  c.objective.update(name='span_corruption', noise_density=0.5, mean_span=12.0)
  c.model.update(name='encoder_decoder', position='relative', activation='geglu',
                 d_model=128, num_layers=2, num_heads=4, d_ff=384, dtype='float32', tie_embeddings=True,
                 qk_norm='head', scan_layers=False)
  c.batch_size = 32
  # Muon needs a third of AdamW's steps here.
  c.optimizer.update(name='muon', learning_rate=3e-2, weight_decay=0.1, extra=dict(adam_scale=0.3))
  c.schedule.warmup_steps = 100
  c.stop.tokens = 1000 * 32 * 72
  c.evaluate.update(every=500, batches=50)
  c.checkpoint.every = 500
  c.sample.update(prompts=('class Reader:\n    def read(<extra_id_0>\n        return self.file\n\n'
                           '    def close(self):\n        <extra_id_1>\n',
                           'import os\n\ndef <extra_id_0>\n    return os.path.join(path, name)\n'),
                  tokens=60, temperature=0.0)
  return smoke(c) if arg == 'smoke' else c
