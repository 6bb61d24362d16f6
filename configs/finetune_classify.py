"""Classes as text: T5 v1.0 base, fine-tuned on SST-2 as its paper does; `:tiny` does the like on this machine's text.

    python main.py --config=configs/finetune_classify.py --workdir=gs://BUCKET/classify
    python main.py evaluate --workdir=gs://BUCKET/classify --tasks=configs/tasks/sst2.json
    python main.py --config=configs/encdec_tiny.py && python main.py --config=configs/finetune_classify.py:tiny

Begins with a folder that holds google-t5/t5-base (config.json, model.safetensors, spiece.model), models/t5_base; other
sizes: docs/finetune.md. Hardware: a TPU v5e-32, about a day. Expected: accuracy 0.952 on GLUE's test set, as Raffel et
al. 2020 have it in table 14, quoted without the paper at hand. Not verified here. `:tiny`: a laptop, 2 CPU cores,
minutes after encdec_tiny, whose weights it begins with; `:tiny_scratch` begins with random ones.
"""
from t5like.config import base, smoke


def get_config(arg=''):
  c = base()
  c.init_from = 'models/t5_base'
  # Lengths, batch, steps and rate: Raffel et al. 2020, sections 3.1.2 and 3.1.3 (2^18 steps, 2^16 tokens, 0.001).
  c.data.update(source='tfds:glue/sst2', inputs='sst2 sentence: {sentence}', targets='{label:words(negative,positive)}',
                validation='validation', packing='best_fit', seq_len=512, target_len=128)
  c.vocabulary.update(path='models/t5_base/spiece.model', sentinels=100)
  c.objective.name = 'seq2seq'
  c.model.update(
      name='encoder_decoder', position='relative', scale_attention=False, head='scaled', tie_embeddings=True,
      activation='relu', init='t5', dropout=0.1, dropout_style='t5', vocab_size=32_128, d_model=768, num_layers=12,
      num_heads=12, head_dim=64, d_ff=3072)
  c.batch_size = 128
  c.optimizer.update(name='adafactor', learning_rate=1e-3, clip_norm=0.0)
  c.schedule.name = 'constant'
  c.stop.tokens = 2 ** 18 * 128 * 512
  c.params_expected = 222_903_552
  c.reference = dict(metric='accuracy', value=0.952, source='Raffel et al. 2020, table 14, not looked up')
  c.evaluate.update(every=5000, batches=20)
  c.checkpoint.update(every=5000, keep_every=5000)
  c.sample.update(prompts=('sst2 sentence: a film that one does not forget',), temperature=0.0)
  if arg in ('tiny', 'tiny_scratch'):
    tiny(c)
    c.init_from = 'runs/encdec_tiny' if arg == 'tiny' else ''
  return smoke(c) if arg == 'smoke' else c


def tiny(c):
  """The model of configs/encdec_tiny.py; which kind of function a piece of source code defines."""
  c.data.update(source='python_functions', inputs='kind: {source}', targets='{kind}', validation='hash',
                validation_fraction=0.05, seq_len=256, target_len=64)
  c.vocabulary.update(path='runs/encdec_tiny/vocabulary', size=1024, algorithm='bpe', normalization='identity',
                      sentinels=16)
  c.model.update(scale_attention=True, head='linear', activation='geglu', init='fan_in', dropout=0.0,
                 dropout_style='standard', vocab_size=0, d_model=128, num_layers=2, num_heads=4, head_dim=0, d_ff=384,
                 dtype='float32', qk_norm='head', scan_layers=False)
  c.batch_size = 8
  c.optimizer.update(name='muon', learning_rate=1e-2, clip_norm=1.0, extra=dict(adam_scale=0.3))
  c.schedule.update(name='linear', warmup_steps=50, final_scale=0.0)
  c.stop.tokens = 600 * 8 * 256
  c.update(params_expected=0, reference=dict(metric='', value=0.0, source=''))
  c.evaluate.update(every=200, batches=0)
  c.checkpoint.update(every=300, keep_every=0)
  c.evaluate.update(tasks=('configs/tasks/function_kinds.json',), limit=200)
  c.sample.update(prompts=('kind: def close(self):\n    self.file.close()\n',
                           'kind: def walk(tree):\n    for node in tree:\n        yield node\n'), tokens=8)
