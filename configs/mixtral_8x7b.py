"""Mixtral 8x7B: each layer has 8 experts of Mistral 7B's width, of which a token passes 2.

    python main.py --config=configs/mixtral_8x7b.py --workdir=gs://BUCKET/mixtral_8x7b

Hardware: a TPU v5p-256 or larger, months, its chips along mesh.fsdp (the default): each gathers the experts of a layer,
2.8 GB. With --config.mesh.expert=4 --config.model.remat=full tokens travel to experts instead, which is predicted to be
slower here; it is for chips that cannot hold a layer. Expected: its scores were not read. Shapes are those of the
paper's table 1 (Jiang et al. 2024, arXiv 2401.04088) and of the released config.json, whose 0.02 for balance
transformers applies to the mean over layers of a sum over the two choices. The paper's rows have 32,768 tokens. Not
published: tokens, learning rate, batch, warm-up, schedule, weight decay, initial weights: these are those of
configs/llama2.py:7b. Not verified here; our data is C4.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=4096, document_mask=False)
  c.vocabulary.update(size=32_000, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=32_000, d_model=4096, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, d_ff=14_336,
      activation='swiglu', norm='rmsnorm', norm_eps=1e-5, position='rope', rope_theta=1_000_000.0, init='bert',
      remat='minimal')
  c.model.update(experts=8, experts_per_token=2, router='softmax_normalized', router_balance=0.02 * 2 / 32)
  c.batch_size = 1024
  c.microbatches = 2
  c.optimizer.update(learning_rate=3e-4, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1, clip_norm=1.0)
  c.schedule.update(warmup_steps=2000, final_scale=0.1)
  c.stop.tokens = '2T'
  c.params_expected = 46_702_792_704
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
