"""Qwen 3 30B-A3B: 128 experts in each of 48 layers, of which a token passes 8; 3.3B of 30.5B parameters are active.

    python main.py --config=configs/qwen3_30b_a3b.py --workdir=gs://BUCKET/qwen3_30b_a3b

Hardware: a TPU v5p-256 or larger, a year, its chips along mesh.fsdp (the default): gathering the experts of a layer,
1.2 GB, is predicted to cost less than tokens that travel along mesh.expert. Expected: its scores were not read. Shapes
are those of the released config.json, whose 0.001 for balance transformers applies to the mean over layers of a sum
over the eight choices; the technical report (arXiv 2505.09388, section 2) balances over the whole batch, as here. Of
the training it gives tokens and lengths alone: see configs/qwen3.py. Not published: learning rate, batch, warm-up,
schedule, weight decay, initial weights: these are our choices. Not verified here; our data is C4.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=4096, document_mask=False)
  c.vocabulary.update(size=151_643, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=151_936, d_model=2048, num_layers=48, num_heads=32, num_kv_heads=4, head_dim=128, activation='swiglu',
      norm='rmsnorm', norm_eps=1e-6, qk_norm='head', position='rope', rope_theta=10_000.0, init='bert', remat='minimal')
  c.model.update(
      experts=128, experts_per_token=8, expert_d_ff=768, router='softmax_normalized', router_balance=0.001 * 8 / 48)
  c.batch_size = 1024
  c.optimizer.update(learning_rate=3e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=2000, final_scale=0.1)
  c.stop.tokens = '30T'
  c.params_expected = 30_532_122_624
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
