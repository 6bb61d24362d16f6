"""Crammed BERT: the best encoder that one GPU trains in a day (Geiping & Goldstein 2022, arXiv 2212.14034).

    python main.py --config=configs/crammed_bert.py --workdir=runs/crammed

Hardware and time: one GPU, 24 h (stop.wall_time). Expected: GLUE, dev, median 80.7 on an A6000 (its model card).
Not verified here. Differences: our data is C4, not The Pile; its batches grow to 8,192 over the first 60 % of
the day, ours are 4,096 throughout; its learning rate begins at a quarter of the peak and follows the clock, ours
begins at 0 and follows steps: set stop.tokens to what your GPU sees in a day, schedule.warmup_steps to 3/4 of
its steps. Its LayerNorms have biases (26,112 in all); without biases elsewhere ours have none.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=128, document_mask=False)
  c.vocabulary.update(size=32_768, sentinels=1)
  c.objective.update(name='masked_lm', masking='bert', noise_density=0.25)
  c.model.update(
      name='encoder', block='pre_norm', embed_norm=True, position='scaled_sinusoidal', head='linear',
      tie_embeddings=True, norm='layernorm', norm_eps=1e-12, activation='geglu', init='bert', vocab_size=32_768,
      d_model=768, num_layers=16, num_heads=12, d_ff=1536)  # its 3,072 count both halves of GEGLU
  c.update(batch_size=4096, microbatches=32)
  c.optimizer.update(name='adamw', learning_rate=1e-3, b1=0.9, b2=0.98, eps=1e-12, weight_decay=0.01, clip_norm=0.5)
  c.schedule.update(name='linear', warmup_steps=18_750, final_scale=0.0)  # a triangle
  c.stop.update(tokens=25_000 * 4096 * 128, wall_time='24h')
  c.params_expected = 119_563_777
  c.reference = dict(metric='GLUE, dev, median', value=80.7, source='Cramming, model card')
  c.evaluate.update(every=1000, batches=5)
  c.checkpoint.every = 500
  c.sample.prompts = ('The capital of France is<mask>.',)
  return smoke(c) if arg == 'smoke' else c
