"""The baseline of the T5 paper, and the other objectives that it compares with it.

    python main.py --config=configs/t5_baseline.py --workdir=gs://BUCKET/t5_baseline
    python main.py --config=configs/t5_baseline.py:mass --workdir=gs://BUCKET/t5_mass

Variants: iid, bert_style, mass, deshuffling, drop, lm, prefix_lm; without one, span corruption as in later
sections. Hardware: a TPU v5e-32, days: 2^19 steps of 128 x 512 tokens, 34B in all. Expected: GLUE 83.28 after
fine-tuning for the baseline (iid; standard deviation 0.235), 79.56 for its language modelling, which splits a text
in two as prefix_lm does (Raffel et al. 2020, tables 1 and 2, as quoted by others). Not verified here.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  objective = arg if arg in ('bert_style', 'mass', 'deshuffling', 'drop', 'lm', 'prefix_lm') else (
      'iid_denoising' if arg == 'iid' else 'span_corruption')
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512, append_eos=False)
  c.vocabulary.update(size=32_100, sentinels=100)
  c.objective.update(name=objective, noise_density=0.15, mean_span=3.0)
  c.model.update(
      name='encoder_decoder', position='relative', scale_attention=False, head='scaled', tie_embeddings=True,
      activation='relu', init='t5', dropout=0.1, dropout_style='t5', vocab_size=32_128, d_model=768, num_layers=12,
      num_heads=12, d_ff=3072)
  c.batch_size = 128
  c.loss.z_loss = 1e-4
  c.optimizer.update(name='adafactor', learning_rate=0.01, clip_norm=0.0)
  c.schedule.update(name='rsqrt', timescale=10_000)
  c.stop.tokens = 2 ** 19 * 128 * 512
  c.params_expected = 222_903_552
  if arg in ('iid', 'prefix_lm'):
    c.reference = dict(metric='GLUE', value=dict(iid=83.28, prefix_lm=79.56)[arg],
                       source='Raffel et al. 2020, table 2, as quoted by others')
  c.evaluate.update(every=5000, batches=20)
  c.checkpoint.update(every=2000, keep_every=50_000)
  c.sample.prompts = ('The <extra_id_0> walks in <extra_id_1> park',)
  return smoke(c) if arg == 'smoke' else c
