"""A decoder on a Markov chain whose entropy is known: the loss must come down to it.

    python main.py --config=configs/markov.py

Hardware: a laptop. Time: a minute or two. Expected: validation nll within 0.02 nats of the entropy
rate, which is sources.markov_entropy(8) (Shannon 1948, section 7).
"""
from configs.base import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='markov:8', validation='tail', validation_fraction=0.05, seq_len=64,
                document_mask=False)
  c.vocabulary.update(name='characters', specials=False)
  c.model.update(vocab_size=8, d_model=32, num_layers=2, num_heads=2, d_ff=64, dtype='float32')
  c.batch_size = 32
  c.optimizer.update(learning_rate=1e-2, weight_decay=0.0)
  c.schedule.warmup_steps = 20
  c.stop.tokens = 400 * 32 * 64
  c.evaluate.every = 200
  c.sample.update(prompts=('a',), tokens=63)
  if arg == 'smoke':
    c = smoke(c)
    c.vocabulary.specials = True
  return c
