"""A small decoder with experts, of about as many FLOPs per token as decoder_tiny, on the same text.

    python main.py --config=configs/experts_tiny.py

8 experts of half the width of its MLP, of which each token passes 2. Hardware: a laptop, 2 CPU cores.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='python_docs', validation_fraction=0.01, seq_len=128)
  c.vocabulary.update(size=2048, algorithm='bpe', normalization='identity', train_characters=2_000_000)
  c.model.update(d_model=192, num_layers=4, num_heads=3, dtype='float32', tie_embeddings=True,
                 scan_layers=False)
  c.model.update(experts=8, experts_per_token=2, expert_d_ff=256, router_balance=0.01, router_z_loss=1e-3)
  c.batch_size = 16
  c.optimizer.update(learning_rate=3e-3, weight_decay=0.1)
  c.schedule.warmup_steps = 50
  c.stop.tokens = '1M'
  c.evaluate.every = 100
  c.checkpoint.every = 200
  c.sample.prompts = ('class ', '"""Return the ', 'def ')
  return smoke(c) if arg == 'smoke' else c
