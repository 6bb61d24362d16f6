"""Span corruption of random letters, whose best loss is known exactly: 2.2364 nats.

    python main.py --config=configs/iid_span.py

Of 70 letters, 16 kinds, 10 are corrupted in 3 spans: 14 targets cost 10 ln 16 for the letters and ln C(9, 2)
for the lengths of the spans, all equally likely, (27.726 + 3.584) / 14 = 2.2364 nats each. Hardware: a laptop.
Time: a few minutes. Expected: validation nll within 0.03 (tests/training/test_known_optimum.py).
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='iid:16', validation='tail', validation_fraction=0.02, seq_len=64)
  c.vocabulary.update(name='characters', sentinels=3)
  c.objective.name = 'span_corruption'
  c.model.update(
      name='encoder_decoder', vocab_size=22, d_model=64, num_layers=2, num_heads=4, d_ff=128,
      activation='geglu', position='relative', scale_attention=False, init='t5', dtype='float32')
  c.batch_size = 32
  c.optimizer.update(learning_rate=3e-3, weight_decay=0.0)
  c.schedule.warmup_steps = 50
  c.stop.tokens = 500 * 32 * 64
  c.evaluate.every = 250
  c.reference = dict(metric='validation nll', value=2.2364, source='exact: see the file')
  c.sample.prompts = ()
  return smoke(c) if arg == 'smoke' else c
