"""T5's way of learning everything at once: span corruption of C4 beside translation, summaries and questions.

    python main.py prepare --config=configs/multitask.py
    python main.py --config=configs/multitask.py --workdir=gs://BUCKET/multitask

Hardware: a TPU v5e-32, days. Expected: no figure; an example of data.mixture (Raffel et al. 2020, section 3.5.2;
the texts are those of its appendix D). The weights are ours. Not verified here.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  task = lambda weight, **data: dict(
      weight=weight, data=dict(data, packing='best_fit', validation='validation'), objective=dict(name='seq2seq'))
  c.data.update(source='tfds:c4/en', validation='validation', seq_len=512, target_len=128, mixture=dict(
      spans=dict(weight=6.0, objective=dict(name='span_corruption')),
      german=task(2.0, source='tfds:wmt14_translate/de-en', inputs='translate English to German: {en}', targets='{de}'),
      news=task(1.0, source='tfds:cnn_dailymail', inputs='summarize: {article}', targets='{highlights}'),
      squad=task(1.0, source='tfds:squad', targets='{answers[text][0]}',
                 inputs='question: {question:pad_punctuation} context: {context:pad_punctuation}')))
  c.vocabulary.update(size=32_100, sentinels=100)
  c.objective.name = 'span_corruption'
  c.model.update(
      name='encoder_decoder', position='relative', scale_attention=False, activation='geglu', init='t5',
      vocab_size=32_128, d_model=768, num_layers=12, num_heads=12, d_ff=2048, dropout=0.1, dropout_style='t5')
  c.batch_size = 128
  c.loss.z_loss = 1e-4
  c.optimizer.update(name='adafactor', learning_rate=0.01, clip_norm=0.0)
  c.schedule.update(name='rsqrt', timescale=10_000)
  c.stop.tokens = 2 ** 18 * 128 * 512
  c.params_expected = 247_577_856
  c.evaluate.update(every=5000, batches=5)
  c.checkpoint.update(every=2000, keep_every=20_000)
  c.sample.prompts = ('translate English to German: That is good.', 'The <extra_id_0> walks in <extra_id_1> park')
  return smoke(c) if arg == 'smoke' else c
