"""ModernBERT base and large: encoders with windows, of Warner et al. 2024 (arXiv 2412.13663), in three phases.

    python main.py --config=configs/modernbert_base.py --workdir=runs/modernbert_base
    python main.py --config=configs/modernbert_base.py:context --workdir=runs/modernbert_base_context
    python main.py --config=configs/modernbert_base.py:decay --workdir=runs/modernbert_base_decay

and `:large`, `:large_context`, `:large_decay`, each of which begins with the weights of the one before it.
Hardware: a TPU v5e-64, weeks; for the later phases a v5e-8 (context), v5e-8 (decay), v5e-8 (large_context) or
v5e-8 (large_decay). Expected: GLUE 88.4 (base) and 90.4 (large) after fine-tuning; not verified here. Sizes: the
defaults of ModernBertConfig of transformers and the config.json of ModernBERT-large. First phase: the authors'
modernbert-base-pretrain.yaml; of large, 5e-4 for 900B tokens, then 5e-5 from an earlier checkpoint (paper, 3.2), of
which this is the first part. Quoted without the paper at hand: rates, batches and tokens of the later phases. Not as
theirs: text; StableAdamW, for which AdamW stands with its clipping; the batch that grows during 50B tokens; rows of
large's later phases, 77 and 78; the decay with the root of the steps, which is linear here.
"""
from t5like.config import base, smoke

# variant: (sequence length, rows, pieces, learning rate, tokens, tokens of the warm-up, init_from)
PHASES = {
    '': (1024, 4608, 4, 8e-4, 1_719_000_000_000, 3_000_000_000, ''),
    'context': (8192, 72, 9, 3e-4, 250_000_000_000, 0, 'runs/modernbert_base'),
    'decay': (8192, 72, 9, 3e-4, 50_000_000_000, 0, 'runs/modernbert_base_context'),
    'large': (1024, 4928, 7, 5e-4, 900_000_000_000, 2_000_000_000, ''),
    'large_context': (8192, 80, 10, 5e-5, 250_000_000_000, 0, 'runs/modernbert_large'),
    'large_decay': (8192, 80, 10, 5e-5, 50_000_000_000, 0, 'runs/modernbert_large_context'),
}


def get_config(arg=''):
  phase = arg if arg in ('context', 'decay', 'large', 'large_context', 'large_decay') else ''
  length, rows, pieces, rate, tokens, warmup, begins_with = PHASES[phase]
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=length)
  c.vocabulary.update(size=50_280, algorithm='bpe', normalization='identity', sentinels=2)
  c.objective.update(name='masked_lm', noise_density=0.3)
  c.model.update(
      name='encoder', vocab_size=50_368, d_model=768, num_layers=22, num_heads=12, d_ff=1152, activation='geglu_exact',
      block='bare_first', norm='layernorm', norm_eps=1e-5, embed_norm=True, position='rope', rope_theta=10_000.0,
      layers=('global', 'local', 'local'), window=65, head='mlm_unbiased', tie_embeddings=True, remat='minimal')
  c.params_expected = 149_655_232
  if phase.startswith('large'):
    c.model.update(d_model=1024, num_layers=28, num_heads=16, d_ff=2624)
    c.params_expected = 395_881_664
  c.batch_size = rows
  c.microbatches = pieces
  c.optimizer.update(learning_rate=rate, b1=0.9, b2=0.98, eps=1e-6, weight_decay=1e-5, clip_norm=1.0)
  c.stop.tokens = tokens
  c.schedule.update(name='constant', warmup_steps=warmup // (rows * length))
  if begins_with:
    c.init_from = begins_with
    c.model.update(rope_theta=160_000.0, local_rope_theta=10_000.0)
  if phase.endswith('decay'):
    c.schedule.update(name='wsd', decay_fraction=1.0, final_scale=0.001)
  c.sample.prompts = ('The capital of France is <mask>.',)
  c.evaluate.update(every=2000, batches=20)
  c.checkpoint.update(every=1000, keep_every=20_000)
  return smoke(c) if arg == 'smoke' else c
