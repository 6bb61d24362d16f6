"""GPT-2 small as nanoGPT trains it: no biases, 300B tokens of open web text.

    python main.py prepare --config=configs/gpt2_124m.py
    python main.py --config=configs/gpt2_124m.py --workdir=gs://BUCKET/gpt2_124m

Hardware and time: nanoGPT took 4 days on 8 A100 GPUs. Expected: validation loss about 2.85 on
OpenWebText with GPT-2's own vocabulary (README of github.com/karpathy/nanoGPT); this config trains a
SentencePiece vocabulary of the same size, so compare bits per byte, not loss.
"""
from configs.base import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:openwebtext', validation='hash', validation_fraction=0.0005,
                seq_len=1024, document_mask=False)
  c.vocabulary.update(size=50_257, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=50_304, d_model=768, num_layers=12, num_heads=12, max_positions=1024,
      activation='gelu', norm='layernorm', norm_eps=1e-5, position='learned', tie_embeddings=True,
      init='gpt2')
  c.batch_size = 480
  c.optimizer.update(learning_rate=6e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=2000, final_scale=0.1)
  c.stop.tokens = 600_000 * 480 * 1024
  c.params_expected = 124_373_760
  c.reference = dict(metric='validation nll', value=2.85, source='nanoGPT, README', verified=False)
  c.evaluate.update(every=2000, batches=100)
  c.checkpoint.update(every=2000, keep_every=100_000)
  return smoke(c) if arg == 'smoke' else c
