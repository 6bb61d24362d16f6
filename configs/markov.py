"""A Markov chain whose entropy is known: the loss must come down to it, and not below.

    python main.py --config=configs/markov.py
    python main.py --config=configs/markov.py:masked

Hardware: a laptop. Time: a minute or two. Expected: validation nll within 0.02 nats of the entropy rate,
which is sources.markov_entropy(8) (Shannon 1948, section 7); masked: within 0.03 nats of the posterior of
a hidden Markov model, which tests/training/test_known_optimum.py computes by the forward-backward algorithm.
"""
from t5like.config import base, smoke


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
  c.reference = dict(metric='validation nll', value=1.53665, source='exact: entropy rate')
  c.sample.update(prompts=('a',), tokens=63)
  if arg == 'masked':
    c.objective.update(name='masked_lm', masking='bernoulli')
    c.vocabulary.update(specials=True, sentinels=1)
    c.model.update(name='encoder', vocab_size=12, d_model=64, num_heads=4, d_ff=128)
    c.optimizer.learning_rate = 5e-3
    c.stop.tokens = 1500 * 32 * 64
    c.reference.update(value=1.2083, source='exact: posterior of the masked letters')
    c.sample.prompts = ('abcd<mask>fg<mask><mask>ba',)
  if arg == 'smoke':
    c = smoke(c)
    c.vocabulary.update(specials=True, sentinels=0)
  return c
