"""Ettin's cross-objective training at 150M: an encoder made of a decoder, or a decoder made of an encoder.

    python main.py --config=configs/ettin_cross.py --workdir=gs://BUCKET/encoder_from_decoder
    python main.py --config=configs/ettin_cross.py:decoder_from_encoder --workdir=gs://BUCKET/decoder_from_encoder

Begins with models/ettin_decoder_150m or models/ettin_encoder_150m, runs of t5like with the same model section.
Hardware: a TPU v5p-32, a day. Expected: better than no adaptation, worse than a model of its own kind trained for as
long (Weller et al. 2025, arXiv 2507.11412). Not verified here. Sizes, rates, lengths and tokens are those of the
authors' files cross-train/base/decoder_base.yaml and encoder_base.yaml; the encoder has the 149,655,232 parameters of
ModernBERT base. Not as theirs: StableAdamW, for which AdamW stands with its clipping; the growing batch of the first
10B tokens; text.
"""
from t5like.config import base, smoke

TOKENS = 50_000_000_000


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=7999)
  c.vocabulary.update(size=50_280, algorithm='bpe', normalization='identity', sentinels=2)
  c.model.update(
      vocab_size=50_368, d_model=768, num_layers=22, num_heads=12, head_dim=64, d_ff=1152, activation='geglu_exact',
      block='bare_first', norm='layernorm', norm_eps=1e-5, embed_norm=True, position='rope', rope_theta=160_000.0,
      layers=('global', 'local', 'local'), window=65, tie_embeddings=True)
  if arg == 'decoder_from_encoder':
    c.init_from = 'models/ettin_encoder_150m'
    c.objective.name = 'causal'
    c.model.name = 'decoder'
    c.adapt.source = 'encoder'
    c.params_expected = 149_014_272
  else:
    c.init_from = 'models/ettin_decoder_150m'
    c.objective.update(name='masked_lm', noise_density=0.15)
    c.model.update(name='encoder', head='mlm_unbiased')
    c.adapt.update(source='decoder', head='fresh')
    c.sample.prompts = ('The capital of France is <mask>.',)
    c.params_expected = 149_655_232
  c.batch_size = 4608
  c.optimizer.update(learning_rate=4e-4, b1=0.9, b2=0.98, eps=1e-6, weight_decay=1e-5, clip_norm=1.0)
  # Of 50B tokens, warm-up in 3B and decay to 0.02 in the last 10B.
  steps = TOKENS // (4608 * 7999)
  c.schedule.update(name='wsd', warmup_steps=steps * 3 // 50, decay_fraction=0.2, final_scale=0.02)
  c.stop.tokens = TOKENS
  c.evaluate.update(every=200, batches=5)
  c.checkpoint.update(every=200, keep_every=0)
  return smoke(c) if arg == 'smoke' else c
