"""A small proxy for large-scale instabilities: qk-norm, z-loss, learning rates swept from 1e-4 to 1.

    python main.py --config=configs/wortsman_proxy.py --workdir=runs/wortsman_1e-2
    python main.py --config=configs/wortsman_proxy.py --workdir=runs/wortsman_1e-1 \\
        --config.optimizer.learning_rate=0.1 --config.optimizer.weight_decay=1e-3 --config.schedule.final_scale=1e-4

Hardware: a TPU v5e-8, hours per learning rate. Expected: with qk-norm and z-loss the loss depends little on the
learning rate, without them (--config.model.qk_norm=none --config.loss.z_loss=0) it diverges early (Wortsman et al.
2023, arXiv 2309.14322, sections 3.1.1 and 3.1.2); no table of it was read. Not verified here. There weight decay
is 1e-4 and not multiplied by the peak learning rate, and the last rate is 1e-5; ours are relative to the peak, so
change all three keys together.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512, document_mask=False)
  c.vocabulary.update(size=32_000, sentinels=0)
  c.model.update(
      vocab_size=32_000, d_model=512, num_layers=6, num_heads=8, d_ff=2048, activation='gelu_tanh',
      norm='layernorm', position='learned', max_positions=512, tie_embeddings=True, qk_norm='head')
  c.batch_size = 256
  c.optimizer.update(learning_rate=1e-2, b1=0.9, b2=0.95, eps=1e-8, weight_decay=1e-4 / 1e-2, clip_norm=1.0)
  c.schedule.update(warmup_steps=5000, final_scale=1e-5 / 1e-2)
  c.loss.z_loss = 1e-4
  c.stop.tokens = 100_000 * 256 * 512
  c.params_expected = 35_527_936
  c.evaluate.update(every=2000, batches=50)
  c.checkpoint.every = 2000
  return smoke(c) if arg == 'smoke' else c
