"""Every key of a t5like config: its default, unit and meaning.

A config file calls `base()`, changes what it needs and returns the result:

    from configs.base import base, smoke

    def get_config(arg=''):
      c = base()
      c.model.num_layers = 12
      return smoke(c) if arg == 'smoke' else c

and any key can be set on the command line: `--config.model.num_layers=6`. Whole numbers take the
suffixes K, M, B and T (thousand to trillion: `--config.stop.tokens=20B`), durations take s, min, h
and d (`--config.stop.wall_time=90min`); both may be written as strings in config files too.
The rules that values must keep (types, choices, ranges, combinations) are in `t5like/config_rules.py`.
"""

import ml_collections


def base():
  """Returns a locked ConfigDict holding every key with its default."""
  c = ml_collections.ConfigDict(type_safe=False)  # t5like.config checks types, and says more

  c.seed = 0  # one number for initial weights, dropout and the order of the data
  c.batch_size = 8  # sequences per optimizer step, over all devices and hosts
  c.microbatches = 1  # pieces the batch is cut into; gradients are summed, then divided once
  c.params_expected = 0  # exact number of parameters, checked before training; 0: not checked
  c.reference = dict(  # the published result that this config aims at, for people and for docs/
      metric='',  # such as 'validation nll'
      value=0.0,  # as published
      source='',  # paper or repository, table or section
      verified=False,  # True once a run of this config has reached it
  )
  c.allow_changed = ''  # keys, split by commas, that may differ from the run being resumed

  # --- Data: where text comes from, and how it becomes rows of tokens ------------------------
  c.data = dict(
      # python_docs | shakespeare | text:GLOB | jsonl:GLOB | tfds:NAME[/CONFIG] |
      # markov:STATES | copy:SYMBOLS | reverse:SYMBOLS; GLOBs may end in .gz or .zst
      source='python_docs',
      field='text',  # field that holds the text, in jsonl records and TFDS features
      split='train',  # split of the TFDS dataset to train on
      tfds_dir='',  # where TFDS datasets lie; '': TFDS's own default
      # what to validate on: 'hash' (documents whose hash falls in the fraction below), 'tail'
      # (the last fraction of each document), or the name of a split of the TFDS dataset
      validation='hash',
      validation_fraction=0.01,  # of documents ('hash') or characters ('tail')
      max_documents=0,  # read only the first n documents; 0: all
      directory='prepared',  # prepared datasets lie in folders below this one
      shards=0,  # files per split; 0: one for each 256 MB of source text
      seq_len=1024,  # tokens per row
      document_mask=True,  # rows hold several documents that do not attend to each other
      workers=0,  # reading processes per host; 0: one thread, fast enough for most
      prefetch=4,  # batches read ahead
  )
  c.vocabulary = dict(
      name='sentencepiece',  # sentencepiece | bytes | characters
      path='',  # an existing SentencePiece model; '': train one on the training documents
      size=8192,  # pieces, with special tokens, sentinels and bytes (SentencePiece only)
      algorithm='unigram',  # unigram | bpe (SentencePiece only)
      normalization='nmt_nfkc',  # nmt_nfkc | identity: keeps newlines and spaces, as code needs
      sentinels=100,  # <extra_id_0>...: mark corrupted spans (SentencePiece and bytes)
      specials=True,  # characters only: reserve padding, end-of-document and unknown
      train_characters=10_000_000,  # characters of text to train the vocabulary on
  )
  c.objective = dict(
      name='causal',  # causal: predict each next token
  )

  # --- Model ----------------------------------------------------------------------------------
  c.model = dict(
      name='decoder',  # decoder
      vocab_size=0,  # rows of the embedding table; 0: the vocabulary, rounded up to 128
      d_model=512,
      num_layers=8,  # blocks
      num_heads=8,  # of queries
      num_kv_heads=0,  # heads of keys and values; 0: as num_heads; fewer: grouped-query attention
      head_dim=0,  # 0: d_model / num_heads
      d_ff=0,  # 0: 4 d_model, or 8/3 d_model rounded up to 128 for swiglu and geglu
      activation='swiglu',  # swiglu | geglu | gelu | gelu_tanh | relu
      norm='rmsnorm',  # rmsnorm | layernorm
      norm_eps=1e-6,
      use_bias=False,  # biases in projections and layernorm
      position='rope',  # rope | learned | none
      rope_theta=10_000.0,  # base of the rotary wavelengths
      max_positions=1024,  # rows of the learned position table
      tie_embeddings=False,  # predict with the embedding table instead of a matrix of its own
      qk_norm=False,  # normalise queries and keys per head
      logit_softcap=0.0,  # squash logits to (-cap, cap) by tanh; 0: off
      dropout=0.0,  # on embeddings and after each sublayer
      init='fan_in',  # fan_in: std 1/sqrt(inputs) | gpt2: 0.02; both scale outputs by 1/sqrt(2 L)
      dtype='bfloat16',  # of activations and matrix products: bfloat16 | float32
      param_dtype='float32',  # of parameters
      attention='auto',  # kernel: auto | xla
      scan_layers=True,  # one compiled layer run L times; False: L copies, slower to compile
      remat='none',  # recompute in the backward pass: none | minimal | full
  )

  # --- Loss and optimizer ---------------------------------------------------------------------
  c.loss = dict(
      z_loss=0.0,  # times log(Z)^2, keeps logits from drifting (T5 and PaLM: 1e-4)
      label_smoothing=0.0,
      chunks=0,  # pieces in which logits are made; 0: chosen from sizes; 1: whole
  )
  c.optimizer = dict(
      name='adamw',  # any optimizer of optax that takes a learning rate
      learning_rate=3e-4,  # peak
      b1=0.9,  # decay of the mean gradient, in optimizers of Adam's kind
      b2=0.95,  # decay of the mean squared gradient, likewise
      eps=1e-8,  # added to its root, likewise
      weight_decay=0.1,  # per step, times the learning rate, in optimizers that take it
      decay_mask='(^|/)w$',  # regex: parameters that decay; not biases and norms
      clip_norm=1.0,  # largest global norm of the gradient; 0: no clipping
      extra=dict(),  # further arguments of optax.<name>
  )
  c.schedule = dict(
      name='cosine',  # cosine | linear | rsqrt | wsd (warm up, stable, decay) | constant
      warmup_steps=0,  # linear from 0 to the peak
      final_scale=0.1,  # learning rate at the end, as a share of the peak (cosine, linear, wsd)
      decay_fraction=0.2,  # share of all steps in which wsd decays
      timescale=10_000,  # steps at the peak before rsqrt falls as 1/sqrt(step)
  )

  # --- When to stop ---------------------------------------------------------------------------
  c.stop = dict(
      tokens=0,  # batch_size x seq_len tokens count per step
      target='',  # converged when true at a validation: 'nll <= 1.5', 'accuracy >= 0.6'
      patience=0,  # converged after n validations in a row without a lower nll; 0: off
      wall_time=0.0,  # seconds, of this start of the run; 0: no limit
  )

  # --- While training ---------------------------------------------------------------------------
  c.mesh = dict(  # devices along each axis; one may be -1: all that are left
      data=1,  # copies of the model, each on other rows
      fsdp=-1,  # likewise, with parameters and optimizer state spread over the axis
      tensor=1,  # heads, feed-forward and vocabulary spread over the axis
  )
  c.log = dict(
      every=10,  # steps between lines in metrics.jsonl and TensorBoard
      tensorboard=True,
  )
  c.evaluate = dict(
      every=500,  # steps between validations; 0: only at the end
      batches=0,  # batches of the validation set; 0: all
  )
  c.checkpoint = dict(
      every=1000,  # steps between saves; 0: only at the end
      keep=2,  # newest checkpoints to keep
      keep_every=0,  # keep each checkpoint whose step is a multiple of this for ever; 0: none
  )
  c.guard = dict(
      max_bad_steps=20,  # non-finite steps in a row (each changes nothing) before giving up
  )
  c.watchdog = dict(  # the run ends with exit code 124 when nothing happens for this long
      start=1800.0,  # seconds from start-up to the end of the first step
      step=600.0,  # seconds for a step, a validation batch or a save
  )
  c.sample = dict(  # text to generate at the end of training
      prompts=('',),  # '': from nothing, as the rows of training begin
      tokens=128,  # at most, per prompt
      temperature=0.8,  # 0: always the likeliest token
      top_k=40,  # sample from the k likeliest; 0: from all
      top_p=1.0,  # sample from the likeliest that hold this share of probability
  )
  c.lock()
  c.optimizer.extra.unlock()
  return c


def smoke(c):
  """Shrinks any config to one that trains a few steps on a laptop, keeping its kind of everything."""
  c.model.update(
      vocab_size=0, d_model=64, num_layers=2, num_heads=4, head_dim=16, max_positions=64,
      num_kv_heads=2 if 0 < c.model.num_kv_heads < c.model.num_heads else 0, d_ff=128)
  c.data.update(source='python_docs', validation='hash', validation_fraction=0.05,
                max_documents=200, seq_len=64)
  if c.vocabulary.name == 'sentencepiece':
    c.vocabulary.update(path='', size=512, sentinels=16, train_characters=200_000)
  c.update(batch_size=8, microbatches=min(c.microbatches, 2), params_expected=0)
  c.mesh.update(data=1, fsdp=-1, tensor=1)
  c.schedule.warmup_steps = 2
  c.stop.update(tokens=8 * 64 * 20, target='', patience=0)
  c.log.every = 1
  c.evaluate.update(every=10, batches=2)
  c.checkpoint.every = 10
  c.sample.update(prompts=('',), tokens=16)
  return c
