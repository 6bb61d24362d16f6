"""T5Gemma 2B-2B: an encoder-decoder made of Gemma 2 2B, both of whose stacks begin with its blocks.

    python main.py --config=configs/t5gemma_2b.py --workdir=gs://BUCKET/t5gemma_2b_prefix_lm
    python main.py --config=configs/t5gemma_2b.py:ul2 --workdir=gs://BUCKET/t5gemma_2b_ul2

Begins with models/gemma-2-2b, a folder with google/gemma-2-2b. Hardware: a TPU v5p-256, weeks. Expected: about as
Gemma 2 2B before fine-tuning, better by 7 % after it (Zhang et al. 2025, arXiv 2504.06225, abstract).
Not verified here. Sizes: the defaults of T5GemmaConfig of transformers, whose model has exactly as many parameters.
Cross-attention begins with the decoder's attention to itself, as theirs does where both stacks have the same size;
`:fresh_cross` begins with random cross-attention and trains it alone for 1,000 steps, which they do where sizes differ.
Quoted without the paper at hand: 2T tokens, rows of 8,192 cut into two halves for the prefix LM. Not as theirs: text,
the rate and the batch, which were not read, and the distillation of the prefix LM. `:ul2` has the denoisers of Tay et
al. 2022, and 100 sentinels above Gemma's tokens, which need 128 rows more.
"""
from t5like.config import base, smoke

LENGTH = 4096


def get_config(arg=''):
  c = base()
  c.init_from = 'models/gemma-2-2b'
  c.adapt.source = 'decoder'
  if arg == 'fresh_cross':
    c.adapt.update(cross='fresh', warm_up_steps=1000)
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=LENGTH)
  c.vocabulary.update(path='models/gemma-2-2b/tokenizer.model', sentinels=0)
  c.objective.name = 'prefix_lm'
  c.data.target_len = LENGTH
  c.model.update(
      name='encoder_decoder', encoder_embed='own', vocab_size=256_000, d_model=2304, num_layers=26, num_heads=8,
      num_kv_heads=4, head_dim=256, d_ff=9216, activation='geglu', block='sandwich', norm='rmsnorm_unit',
      norm_eps=1e-6, position='rope', rope_theta=10_000.0, layers=('local', 'global'), window=4096,
      encoder_window=4097,
      embed_scale='sqrt_d_model', attention_softcap=50.0, logit_softcap=30.0, tie_embeddings=True, remat='full')
  c.params_expected = 5_596_853_760
  if arg == 'ul2':
    c.objective.name = 'ul2'
    c.data.target_len = 0
    c.vocabulary.sentinels = 100
    c.adapt.tokens = 'matched'
    c.model.vocab_size = 256_128
    c.params_expected = 5_596_853_760 + 2 * 128 * 2304
  c.batch_size = 256
  c.optimizer.update(learning_rate=1e-4, weight_decay=0.0, clip_norm=1.0)
  c.schedule.update(name='cosine', warmup_steps=1000, final_scale=0.1)
  c.stop.tokens = 2_000_000_000_000
  c.evaluate.update(every=2000, batches=5)
  c.checkpoint.update(every=2000, keep_every=100_000)
  c.sample.prompts = ('Once upon a time',)
  if arg == 'ul2':
    c.sample.prompts = ('[S2S] Once upon a time',)
  return smoke(c) if arg == 'smoke' else c
