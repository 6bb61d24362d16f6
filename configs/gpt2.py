"""GPT-2 as nanoGPT trains it: no biases, 300B tokens of open web text. Sizes: small, medium, large, xl.

    pip install -e '.[hf]' && python main.py prepare --config=configs/gpt2.py     # reads 24 GB from the Hub
    python main.py --config=configs/gpt2.py:medium --workdir=gs://BUCKET/gpt2_medium

Hardware and time: nanoGPT took 4 days on 8 A100 GPUs for the small one; of TPUs a v5e-32. Expected: validation
loss about 2.85 on OpenWebText with GPT-2's own vocabulary (README of github.com/karpathy/nanoGPT); this config trains a
SentencePiece vocabulary of the same size, so compare bits per byte, not loss. Not verified here. The larger
sizes are GPT-2's shapes with the same recipe; nanoGPT has no results for them.
"""
from t5like.config import base, smoke

SIZES = dict(  # layers, width, heads, parameters (50,304 rows, no biases)
    small=(12, 768, 12, 124_373_760), medium=(24, 1024, 16, 354_599_936),
    large=(36, 1280, 20, 773_582_080), xl=(48, 1600, 25, 1_556_840_000))


def get_config(arg=''):
  c = base()
  layers, width, heads, params = SIZES[arg if arg in ('small', 'medium', 'large', 'xl') else 'small']
  c.data.update(source='parquet:hf://datasets/Skylion007/openwebtext/**/train-*.parquet', validation='hash',
                validation_fraction=0.0005, seq_len=1024, document_mask=False)
  c.vocabulary.update(size=50_257, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=50_304, d_model=width, num_layers=layers, num_heads=heads, max_positions=1024,
      activation='gelu', norm='layernorm', norm_eps=1e-5, position='learned', tie_embeddings=True,
      init='gpt2', remat='none' if layers == 12 else 'minimal')
  c.batch_size = 480
  c.microbatches = 1 if layers == 12 else 3
  c.optimizer.update(learning_rate=6e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=2000, final_scale=0.1)
  c.stop.tokens = 600_000 * 480 * 1024
  c.params_expected = params
  if layers == 12:
    c.reference = dict(metric='validation nll', value=2.85, source='nanoGPT, README')
  c.evaluate.update(every=2000, batches=100)
  c.checkpoint.update(every=2000, keep_every=100_000)
  return smoke(c) if arg == 'smoke' else c
