"""RoBERTa base: BERT's encoder, other masks for every epoch, rows of 512, batches of 8,192.

    python main.py --config=configs/roberta_base.py --workdir=gs://BUCKET/roberta_base

Hardware: a TPU v5e-128 or larger, days. Expected: after fine-tuning, MNLI 87.6, SST-2 94.8 (README of fairseq's
RoBERTa). Not verified here; our data is C4, not the original 160 GB. Batch, steps, learning rate, warm-up, decay and
Adam's settings are those of the model card of FacebookAI/roberta-base (500,000 steps of 8,000 rows, 6e-4, 24,000 steps
of warm-up, linear decay, 0.9, 0.98, 1e-6, weight decay 0.01); no clipping, as in fairseq's config.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512, document_mask=False)
  c.vocabulary.update(size=50_265, algorithm='bpe', normalization='identity', sentinels=2)
  c.objective.update(name='masked_lm', masking='roberta', noise_density=0.15, cls_sep=True)
  c.model.update(
      name='encoder', block='post_norm', embed_norm=True, position='learned_from_2', num_types=1, head='mlm',
      tie_embeddings=True, norm='layernorm', norm_eps=1e-5, use_bias=True, activation='gelu', init='bert',
      vocab_size=50_265, max_positions=514, dropout=0.1, d_model=768, num_layers=12, num_heads=12)
  c.batch_size = 8192
  c.microbatches = 4
  c.optimizer.update(name='adamw', learning_rate=6e-4, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01, clip_norm=0.0)
  c.schedule.update(name='linear', warmup_steps=24_000, final_scale=0.0)
  c.stop.tokens = 500_000 * 8192 * 512
  c.params_expected = 124_697_433
  c.reference = dict(metric='GLUE MNLI, dev', value=87.6, source='fairseq, RoBERTa README')
  c.evaluate.update(every=2000, batches=20)
  c.checkpoint.update(every=1000, keep_every=50_000)
  c.sample.prompts = ('The capital of France is<mask>.',)
  return smoke(c) if arg == 'smoke' else c
