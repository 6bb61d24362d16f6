"""OLMoE 1B-7B: 64 small experts in each layer, of which a token passes 8; 1.3B of 6.9B parameters are active.

    python main.py --config=configs/olmoe_1b_7b.py --workdir=gs://BUCKET/olmoe_1b_7b

Hardware: a TPU v5e-64 or larger, months, its chips along mesh.fsdp (the default): with mesh.expert, room for the eight
choices of each token is predicted to cost more than gathering the experts of a layer, 0.8 GB, does. Expected: its
scores were not read. Shapes are those of the released config.json; batches, learning rate, decay and clipping, losses
and no dropped tokens those of the paper (Muennighoff et al. 2024, arXiv 2409.02060) and of configs/*.yml in
github.com/allenai/OLMoE. Both losses are means over layers there: hence the division by 16. Theirs had 2,500 steps of
warm-up, a cosine to 10 % over 5T tokens, then 133B tokens of better data with a line to 0, which are not here.
Not verified here; our data is C4, and our initial weights of 0.02 are cut at two deviations instead of three.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=4096, document_mask=False)
  c.vocabulary.update(size=50_280, algorithm='bpe', normalization='identity', sentinels=0)
  c.model.update(
      vocab_size=50_304, d_model=2048, num_layers=16, num_heads=16, activation='swiglu', qk_norm='all', norm='rmsnorm',
      norm_eps=1e-5, position='rope', rope_theta=10_000.0, init='bert', remat='full')
  c.model.update(
      experts=64, experts_per_token=8, expert_d_ff=1024, router='softmax', router_balance=0.01 / 16,
      router_z_loss=0.001 / 16)
  c.batch_size = 1024
  c.microbatches = 2
  c.optimizer.update(learning_rate=4e-4, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0, decay_mask='.*')
  c.schedule.update(warmup_steps=2500, final_scale=0.1)
  c.stop.tokens = '5T'
  c.params_expected = 6_919_161_856
  c.evaluate.update(every=5000, batches=50)
  c.checkpoint.update(every=1000, keep_every=50_000)
  return smoke(c) if arg == 'smoke' else c
