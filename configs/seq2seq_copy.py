"""Learning to copy, or with :reverse to reverse, strings of letters: nothing less than all right will do.

    python main.py --config=configs/seq2seq_copy.py
    python main.py --config=configs/seq2seq_copy.py:reverse

Hardware: a laptop. Time: a few minutes. Expected: at least 99 % of held-out strings exactly right
(tests/training/test_known_optimum.py counts them).
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='reverse:20' if arg == 'reverse' else 'copy:20', inputs='{inputs}', targets='{targets}',
                validation_fraction=0.02, packing='best_fit', seq_len=64, target_len=64)
  c.vocabulary.update(name='characters', sentinels=0)
  c.objective.name = 'seq2seq'
  c.model.update(
      name='encoder_decoder', d_model=64, num_layers=2, num_heads=4, d_ff=128, dtype='float32')
  c.batch_size = 16
  c.optimizer.update(name='muon', learning_rate=2e-2, weight_decay=0.0, extra=dict(adam_scale=0.3))
  c.schedule.warmup_steps = 50
  c.stop.tokens = 1000 * 16 * 64
  c.evaluate.every = 250
  c.reference = dict(metric='validation accuracy', value=1.0, source='exact')
  c.sample.update(prompts=('abcdefgh', 'tennis'), tokens=16, temperature=0.0)
  return smoke(c) if arg == 'smoke' else c
