"""Every key of a t5like config: its default, unit and meaning.

A config file calls `base()`, changes what it needs and returns the result:

    from t5like.config import base, smoke

    def get_config(arg=''):
      c = base()
      c.model.num_layers = 12
      return smoke(c) if arg == 'smoke' else c

and any key can be set on the command line: `--config.model.num_layers=6`. Whole numbers take the
suffixes K, M, B and T (thousand to trillion: `--config.stop.tokens=20B`), durations take s, min, h
and d (`--config.stop.wall_time=90min`); both may be written as strings in config files too.
The rules that values must keep (types, choices, ranges, combinations) are in `t5like/config/rules.py`.
"""
import ml_collections

from t5like import choices
from t5like.config_type import Config, Section
from t5like.objectives import table

# Keys that hold dicts whose names are not known beforehand.
OPEN = (
    ('data', 'mixture'),
    ('data', 'stages'),
    ('vocabulary', 'special'),
    ('model', 'rope_scaling'),
    ('optimizer', 'extra'),
    ('compile', 'options'),
)


def base() -> Config:
  """Returns a locked ConfigDict holding every key with its default."""
  c: Config = ml_collections.ConfigDict(type_safe=False)  # t5like.config checks types, and says more

  c.seed = 0  # one number for initial weights, dropout and the order of the data
  c.batch_size = 8  # sequences per optimizer step, over all devices and hosts
  c.microbatches = 1  # pieces the batch is cut into; gradients are summed, then divided once
  c.params_expected = 0  # exact number of parameters, checked before training; 0: not checked
  c.reference = dict(  # the published result that this config aims at, for people and for docs/
      metric='',  # such as 'validation nll'
      value=0.0,  # as published
      source='',  # paper or repository, table or section
  )
  # Weights to begin with instead of random ones: the workdir of a run, one of its checkpoints
  # (WORKDIR/checkpoints/STEP), or a Hugging Face folder (config.json, *.safetensors)
  c.init_from = ''
  # .. where they are of another model: what becomes of them (docs/adapting.md; config/correspondences.py)
  c.adapt = dict(
      source='same',  # architecture that init_from holds: same as model.name | decoder | encoder | encoder_decoder
      # the encoder's blocks: copied | fresh: initialised anew | a second folder or workdir, whose blocks they are
      encoder='copied',
      encoder_source='encoder',  # architecture of that second one: encoder | decoder | encoder_decoder
      decoder='copied',  # the decoder's blocks: copied | fresh
      # cross-attention: copied, from the attention of each block to itself where there was none before | fresh
      cross='copied',
      head='copied',  # what is between the last layer and the logits, a tied table aside: copied | fresh
      # rows of tokens: same: all, refused where vocabularies differ | matched: those that both have, others are fresh
      tokens='same',
      warm_up_steps=0,  # first steps in which only what is fresh is trained
      warm_up=(),  # what else is, by patterns as those of optimizer.freeze: ('embed',)
  )
  # A run to continue in another workdir: the workdir of that run, for its newest checkpoint, or one of its checkpoints
  # (WORKDIR/checkpoints/STEP). Parameters, optimizer, step, tokens and place in the data are those of the checkpoint,
  # the schedule, stages and what else a resumed run may change those of this config; init_from does not count then
  c.branch_from = ''
  # What changes at a number of tokens, for the rest of the run or until another stage changes it again:
  # ({'tokens': '9B', 'data.seq_len': 4096, 'batch_size': 256, 'data.mixture.books.weight': 3.0}, {'tokens': ..}); a
  # stage begins with the first step that begins at or beyond its tokens (docs/annealing.md)
  c.stages = ()
  # keys, split by commas, that may differ from the run being resumed, or go back to defaults after init_from
  c.allow_changed = ''

  # --- Data: where text comes from, and how it becomes rows of tokens ------------------------
  c.data = dict(
      # python_docs | python_functions | shakespeare | text:GLOB | jsonl:GLOB | parquet:GLOB |
      # tfds:NAME[/CONFIG][:VERSION] | markov:STATES | iid:SYMBOLS | copy:SYMBOLS | reverse:SYMBOLS; files of GLOBs
      # may end in .gz, .bz2, .xz or .zst, and lie on gs://, s3:// or whatever else fsspec reads
      source='python_docs',
      field='text',  # field that holds the text, in jsonl records and TFDS features
      # Examples of two texts: templates over the fields of a record, such as 'summarize: {article}' and
      # '{highlights}' (t5like/config/templates.py); '' for both: the text in `field` alone
      inputs='',  # template
      targets='',  # template of the second text, the same way
      split='train',  # split of the TFDS dataset to train on
      tfds_dir='',  # where TFDS datasets lie, on disk or gs://; '': TFDS's own default
      # what to validate on: 'hash' (documents whose hash falls in the fraction below, one at least), 'tail'
      # (the last fraction of each document), the name of a split of the TFDS dataset, or text of its own, never
      # trained on: a glob of files such as 'dev/*.txt', or any source as above (of tfds:NAME the split 'validation')
      validation='hash',
      validation_fraction=0.01,  # of documents ('hash') or characters ('tail')
      max_documents=0,  # read only the first n documents; 0: all
      max_bad_records=0,  # damaged records (not JSON, not UTF-8, ..) to leave out before giving up
      empty='drop',  # documents without text: drop | error
      max_document_tokens=0,  # most tokens of a text, its end included; 0: no limit
      overlong='truncate',  # texts above that limit: truncate | drop | error
      deduplicate=False,  # keep one of all documents with exactly the same text, of validation first
      directory='prepared',  # prepared datasets lie in folders below this one, on disk or gs://
      cache='',  # where those on gs:// are kept on this machine; '': ~/.cache/t5like
      shards=0,  # files per split; 0: one for each 256 MB of source text
      prepare_workers=0,  # processes that prepare; 0: as many as there are cores
      append_eos=True,  # documents end with an end-of-document token; T5's own ran into each other
      seq_len=1024,  # tokens per row: of the decoder, or of the encoder where there is one
      target_len=0,  # encoder_decoder: tokens per row of the decoder; 0: what the objective needs
      # concat_split: rows are cut from all documents joined | best_fit: rows hold whole documents, or
      # examples of two texts, planned so that little is left over | none: one of them per row
      packing='concat_split',
      document_mask=True,  # documents in a row do not attend to each other
      # Several datasets or objectives at once: name: dict(weight=2.0, data=dict(source=..),
      # objective=dict(name=..)); what a component does not say it takes from this config
      mixture=dict(),
      # weights: rows in proportion to weights | examples: to weight x min(examples, cap)^(1/temperature), the
      # examples-proportional mixing of T5 (Raffel et al. 2020, section 3.5.2)
      mixture_rates='weights',
      mixture_cap=0,  # examples: most examples that count of a dataset; 0: all
      mixture_temperature=1.0,  # examples: above 1, shares are more even
      # Weights that change: name: dict(tokens='10B', weights=dict(web=0.5, code=2.0)); from that many tokens
      # on, the components it names have these weights (0: none of it), the others keep theirs
      stages=dict(),
      # Rows to leave out, as '128000:153600,200K:210K', counted from 0 (step k at a constant batch_size reads
      # rows k x batch_size and on; metrics.jsonl says examples_seen)
      skip_rows='',
      workers=0,  # reading processes per host; 0: one thread, fast enough for most
      prefetch=4,  # batches read ahead
  )
  c.vocabulary = dict(
      name='sentencepiece',  # sentencepiece | bytes | characters | huggingface: the tokenizer.json in `path`
      path='',  # an existing SentencePiece model; '': train one on the training documents
      size=8192,  # most pieces, with special tokens, sentinels and bytes (SentencePiece only)
      algorithm='unigram',  # unigram | bpe (SentencePiece only)
      normalization='nmt_nfkc',  # nmt_nfkc | identity: keeps newlines and spaces, as code needs
      sentinels=100,  # <extra_id_0>...: mark corrupted spans (SentencePiece and bytes)
      specials=True,  # characters only: reserve padding, end-of-document and unknown
      # Imported tokenizers: which tokens are special where their folder does not say, or other ones than it says, such
      # as dict(eos='<|endoftext|>'). Keys: bos begins texts, eos ends documents, pad, unk, mask, cls and sep around
      # rows of masked LMs, start of decoders behind encoders; values: a token's text, its id, or '' for none
      special=dict(),
      train_characters=10_000_000,  # characters of text to train the vocabulary on
  )
  c.objective = dict(
      # causal: each next token | prefix_lm: each next token after a prefix that is seen whole |
      # masked_lm: tokens that are masked (BERT, RoBERTa) | span_corruption: spans replaced by sentinels (T5) |
      # iid_denoising | mass | bert_style | deshuffling | drop | lm: T5's other ways to spoil a text |
      # ul2: a mixture of denoisers | seq2seq: the targets of data.inputs and data.targets
      name='causal',
      noise_density=0.15,  # share of tokens to be masked or corrupted
      mean_span=3.0,  # tokens in a corrupted span (span_corruption)
      roll=False,  # span_corruption: rotate the mask, so that the last token is not always corrupted
      # masked_lm, how many: bert: round(density x length) | roberta: the same, rounded up or down by
      # chance | bernoulli: each token independently
      masking='bert',
      whole_word=False,  # masked_lm: all pieces of a word or none
      cls_sep=False,  # masked_lm: rows begin with <cls> and end with the end-of-document token
      predictions=0,  # masked_lm: most predictions in a row; 0: what the density needs
      # ul2: mode token ('' for none), rate, mean span or 'prefix', density (Tay et al. 2022, table 1)
      denoisers=('[NLU] 0.2 3 0.15', '[NLU] 0.2 8 0.15', '[S2S] 0.2 prefix', '[NLG] 0.1 3 0.5',
                 '[NLG] 0.1 8 0.5', '[NLG] 0.1 64 0.15', '[NLG] 0.1 64 0.5'),
  )

  # --- Model ----------------------------------------------------------------------------------
  c.model = dict(
      name='decoder',  # decoder | encoder | encoder_decoder
      vocab_size=0,  # rows of the embedding table; 0: the vocabulary, rounded up to 128
      d_model=512,
      num_layers=8,  # blocks, of the decoder where there are both
      num_encoder_layers=0,  # encoder_decoder: 0: as num_layers
      num_heads=8,  # of queries
      num_kv_heads=0,  # heads of keys and values; 0: as num_heads; fewer: grouped-query attention
      head_dim=0,  # 0: d_model / num_heads
      d_ff=0,  # 0: 4 d_model, or 8/3 d_model rounded up to 128 for swiglu and geglu
      # gated: swiglu | geglu | geglu_exact | reglu | glu | bilinear; not: gelu | gelu_tanh | relu | swish
      activation='swiglu',
      # x + f(norm(x)): pre_norm | norm(x + f(x)): post_norm (BERT) | x + norm(f(x)): output_norm (OLMo 2) |
      # x + norm(f(norm(x))): sandwich (Gemma 2) | parallel: pre_norm, attention and MLP both from the block's input
      # (GPT-NeoX) | bare_first: pre_norm, the first attention without a norm (ModernBERT, whose embed_norm it is)
      block='pre_norm',
      # rmsnorm | rmsnorm_unit: its scale is 1 plus what is learned (Gemma) | layernorm |
      # layernorm_plain: without scale (OLMo)
      norm='rmsnorm',
      norm_eps=1e-6,  # added to the mean square before its root
      use_bias=False,  # biases in projections and layernorm
      qkv_bias=False,  # biases of queries, keys and values alone (Qwen 2)
      embed_norm=False,  # normalise the sum of embeddings (BERT)
      # encoder_decoder: what embeds tokens of the encoder: shared: what embeds those of the decoder | own: a table of
      # tokens of its own (T5Gemma) | own_positions: positions and a norm of embeddings of its own (BART)
      encoder_embed='shared',
      embed_scale='none',  # of embedded tokens: none | sqrt_d_model: times sqrt(d_model) (Gemma)
      # rope | learned | learned_from_2: rows 0 and 1 unused (RoBERTa) | relative: T5's buckets, a table per stack |
      # relative_per_layer: a table per layer (umT5) | sinusoidal | scaled_sinusoidal: times a learned number | none
      position='rope',
      rope_theta=10_000.0,  # base of the rotary wavelengths
      rope_fraction=1.0,  # share of head_dim that turns (GPT-NeoX: 0.25)
      # Rotary positions in rows longer than a model began with: dict(name='llama3', factor=8.0, ..); names and their
      # numbers are in ROPE_SCALINGS of t5like/choices.py; dict(): positions as they are
      rope_scaling=dict(),
      # Kinds of layers, a pattern that repeats over each stack: global | local: attention within the window |
      # global_nope | local_nope: the same, without rotary positions (SmolLM 3: three global, one global_nope)
      layers=('global',),
      window=0,  # local layers: a token sees itself and tokens less than so many positions before it
      window_after=0,  # .. and after it, where it sees tokens on both sides; 0: as window
      encoder_window=0,  # the window of an encoder_decoder's encoder (T5Gemma: one more); 0: as window
      local_rope_theta=0.0,  # base of the rotary wavelengths of local layers (Gemma 3: 1e4); 0: rope_theta
      max_positions=1024,  # rows of the learned position table
      num_types=0,  # segment types with an embedding each (BERT: 2); all tokens are of type 0
      tie_embeddings=False,  # predict with the embedding table instead of a matrix of its own
      # linear | scaled: divided by sqrt(d_model) (T5 v1.0) | mlm: dense, activation, norm, output bias (BERT) |
      # mlm_unbiased: its dense layer without a bias (ModernBERT)
      head='linear',
      scale_attention=True,  # divide attention logits by sqrt(head_dim); T5 does not
      query_scale=0.0,  # multiplies attention logits instead (Gemma 2 27B: 144^-0.5); 0: scale_attention says it
      attention_softcap=0.0,  # squash attention logits to (-cap, cap) by tanh (Gemma 2: 50); 0: off
      qk_norm='none',  # normalise queries and keys: none | head: each head | all: all heads as one (OLMo 2)
      # a learned logit that joins the softmax, so that attention may add up to less than 1: none | head: one for each
      # head of queries (gpt-oss)
      attention_sinks='none',
      logit_softcap=0.0,  # squash logits to (-cap, cap) by tanh; 0: off
      dropout=0.0,  # on embeddings, attention and after each sublayer
      # standard | t5: also inside the MLP and after the last norm, one mask for all positions of a row
      dropout_style='standard',
      # fan_in: std 1/sqrt(inputs) | gpt2: 0.02; both scale outputs by 1/sqrt(2 L) | bert: 0.02, cut at
      # two std | t5 (T5X) | neox (GPT-NeoX)
      init='fan_in',
      dtype='bfloat16',  # of activations and matrix products: bfloat16 | float32; parameters are float32
      # 8-bit operands of the products of layers, forward and for gradients of activations, with dynamic scales; faster
      # where the devices have such products (int8: TPU v5e, v5p, v6e; fp8: TPU7x, H100): none | int8 | fp8
      quantization='none',
      experts=0,  # MLPs of a layer, of which a router chooses some for each token (docs/experts.md); 0: one MLP for all
      experts_per_token=2,  # how many it chooses
      expert_d_ff=0,  # width of an expert; 0: d_ff
      expert_capacity=0,  # tokens of a row that an expert takes, the first ones (Switch); 0: all that choose it
      shared_experts=0,  # as wide as this many experts: an MLP that every token passes besides
      shared_gate=False,  # .. whose output is multiplied by a number that is learned of each token (Qwen 2)
      sparse_every=1,  # the last of this many layers has experts, others an MLP (Switch: 2)
      dense_first=0,  # layers at the beginning that have an MLP in any case
      # how logits of the router weigh experts: softmax (Switch, OLMoE) | softmax_normalized: of those chosen alone
      # (Mixtral) | sigmoid | sigmoid_normalized (DeepSeek-V3)
      router='softmax_normalized',
      router_balance=0.0,  # times the loss that is 1 where all experts get the same share of tokens (Switch: 1e-2)
      # experts are chosen by weights plus a number each, which rises for those that got few tokens and falls for the
      # others, by optimizer.router_bias_rate: balance without a loss (DeepSeek-V3)
      router_bias=False,
      router_z_loss=0.0,  # times log(Z)^2 of the router's logits (ST-MoE: 1e-3)
      router_jitter=0.0,  # what the router reads is multiplied by random numbers this near to 1 (Switch: 1e-2)
      # kernel: auto (on one CPU in float32, blocks of queries) | xla | splash (auto's on TPUs, one of ours in its place
      # where position='relative'; slow elsewhere) | cudnn (auto's on GPUs)
      attention='auto',
      # keys of rows that mesh.context shards: gathered on each device | ring: travelling from device to device (kernels
      # of TPUs, dropout=0) | auto: a ring where gathered ones would take more than 256 MiB; 4 GiB with a window, fewer
      # queries than keys, or less than 4,096 queries on a device
      context_attention='auto',
      # one compiled layer run L times; False: L copies, slower to compile, which one CPU takes anyway for up to 12
      # layers in float32
      scan_layers=True,
      # what the forward pass keeps of each layer, while the backward pass recomputes the rest, from the least memory
      # to the shortest step: full (nothing) | context (what attention makes) | attention (also its queries, keys and
      # values) | middle (also x between attention and MLP) | up (also the MLP's first product) | minimal (also its
      # gate's) | weights (also the gathered weights) | none (everything is kept)
      remat='none',
      # decoder: given inputs and prefixes see each other in both directions (prefix LM, T5); False: only what came
      # before, as decoders of Hugging Face do
      prefix_mask=True,
      # LoRA (Hu et al. 2021, arXiv 2106.09685): W + lora_alpha / lora_rank * A B, where only A and B are trained;
      lora_rank=0,  # columns of A; 0: no LoRA
      lora_alpha=16.0,
      lora_projections=('q', 'v'),  # which matrices W: q, k, v, o of attention, up, gate, down of the MLP
  )

  # --- Loss and optimizer ---------------------------------------------------------------------
  c.loss = dict(
      z_loss=0.0,  # times log(Z)^2, keeps logits from drifting (T5 and PaLM: 1e-4)
      label_smoothing=0.0,
      chunks=0,  # pieces in which logits are made; 0: chosen from sizes; 1: whole
  )
  c.optimizer = dict(
      # one of t5like/config/optimizer_rules.py: optax's, each layer of a stack separately, and of our own adafactor,
      # muon, adamw_rms: Adam's step times the RMS of the parameter | bert_adamw: no bias correction
      name='adamw',
      learning_rate=3e-4,  # peak
      b1=0.9,  # decay of the mean gradient, in optimizers of Adam's kind
      b2=0.95,  # decay of the mean squared gradient, in the same optimizers
      eps=1e-8,  # added to the root of that mean, in the same optimizers
      weight_decay=0.1,  # per step, times the learning rate; adafactor takes it in `extra` only
      decay_mask='(^|/)w$',  # regex: parameters that decay; not biases and norms
      clip_norm=1.0,  # largest global norm of the gradient; 0: no clipping
      # what a moving average of the parameters keeps of itself in a step, such as 0.999; it is validated and saved
      # beside them (docs/annealing.md); 0: there is none
      ema=0.0,
      # Parameters that stay as they are, by patterns of their paths (t5like/config/trainable.py):
      # ('embed', 'stack/blocks[:4]') the table and the first four layers,
      # ('*', '!head', '!*norm*') all but the head and norms
      freeze=(),
      # of the learning rate, weight decay included, by the same patterns: ('embed=0.1', 'stack/blocks[-2:]=2')
      multipliers=(),
      router_bias_rate=1e-3,  # what numbers of model.router_bias move by in a step, whatever the schedule says
      extra=dict(),  # further arguments of the optimizer, see t5like/config/optimizer_rules.py
  )
  c.schedule = dict(
      # cosine | linear | rsqrt | rsqrt_decay: linear to the end in decay_fraction | constant |
      # wsd: warm up, stable, decay
      name='cosine',
      warmup_steps=0,  # linear from 0 to the peak; cut to the steps there are in a shorter run
      final_scale=0.1,  # learning rate at the end, as a share of the peak (cosine, linear, wsd, rsqrt_decay)
      decay_fraction=0.2,  # share of all steps in which wsd and rsqrt_decay decay
      timescale=10_000,  # steps at the peak before rsqrt falls as 1/sqrt(step)
  )

  # --- When to stop ---------------------------------------------------------------------------
  c.stop = dict(
      tokens=0,  # batch_size x seq_len tokens count per step
      target='',  # converged when true at a validation: 'nll <= 1.5', 'accuracy >= 0.6'
      patience=0,  # converged after n consecutive validations without a lower nll; 0: off
      wall_time=0.0,  # seconds, of this start of the run; 0: no limit
  )

  # --- While training ---------------------------------------------------------------------------
  c.mesh = dict(  # devices along each axis; one may be -1: all that are left
      slice=1,  # TPU slices, each with a copy of what follows, on other rows
      data=1,  # copies of the model, each on other rows
      fsdp=-1,  # replicas of the model, with parameters and optimizer state spread over the axis
      # as fsdp, beside it: gradients are added up over fsdp first and over this axis then, which on v5e is faster than
      # over all chips of a slice at once
      fsdp_outer=1,
      expert=1,  # rows too, and experts of sparse layers spread over the axis; other parameters as over fsdp
      context=1,  # pieces of each row, for long ones; parameters and optimizer state are spread too
      tensor=1,  # heads, feed-forward and vocabulary spread over the axis
  )
  c.compile = dict(
      options=dict(),  # of XLA, for the train step; preflight --search finds some
      cache='auto',  # folder or gs:// for compiled programs; auto: ~/.cache/t5like/xla; '': none
  )
  c.log = dict(
      every=10,  # steps between lines in metrics.jsonl
      trackers=('tensorboard',),  # where else numbers and samples go: tensorboard, wandb, mlflow (each an extra)
      histograms_every=0,  # steps between histograms of parameters and gradients, for trackers; 0: none
  )
  c.evaluate = dict(
      every=500,  # steps between validations; 0: only at the end
      batches=0,  # batches of the validation set; 0: all
      tasks=(),  # to be solved while training: names of built-in tasks, paths of task files (docs/evaluate.md)
      tasks_every=0,  # steps between them; 0: only at the end
      shots=-1,  # worked examples before each question of a task; -1: as many as the task says
      limit=0,  # questions of each task, the first ones; 0: all
  )
  c.checkpoint = dict(
      every=1000,  # steps between saves; 0: only at the end
      keep=2,  # newest checkpoints to keep
      keep_every=0,  # keep each checkpoint whose step is a multiple of this for ever; 0: none
      keep_best=0,  # keep this many checkpoints with the lowest validation nll, saved at a validation's step
  )
  c.guard = dict(
      max_bad_steps=20,  # consecutive bad steps (not finite, or spikes; each changes nothing) before a rewind
      rewinds=3,  # times that a run goes back to a checkpoint and leaves out the rows since, before it gives up
      spike_loss=0.0,  # a step is bad when its loss is this many times the median of the last 128 steps; 0: never
      spike_norm=0.0,  # the same for the gradient norm, before clipping; such as 10
      compare_every=1000,  # steps between comparisons of devices that should hold the same, also at saves; 0: never
  )
  c.watchdog = dict(  # the run ends with exit code 124 when nothing happens for this long
      start=1800.0,  # seconds from start-up to the end of the first step
      step=600.0,  # seconds for a step or a validation batch
      data=600.0,  # seconds for the next batch to be read
      save=1800.0,  # seconds for a checkpoint to be taken from the devices and, when the run waits for it, written
      peers=30.0,  # seconds without a sign of life after which a process of several counts as gone
  )
  c.sample = dict(  # text to generate at the end of training
      every=0,  # and while training: steps between samples; 0: none
      # '': from nothing, as rows of training begin; models that fill in take '<mask>' or '<extra_id_0>'
      prompts=('',),
      tokens=128,  # at most, per prompt
      temperature=0.8,  # 0: always the likeliest token
      top_k=40,  # sample from the k likeliest; 0: from all
      top_p=1.0,  # sample from the likeliest that hold this share of probability
  )
  c.lock()
  for section, key in OPEN:
    c[section][key].unlock()
  return c


SMALL = dict(source='python_docs', validation='hash', validation_fraction=0.05, max_documents=200)
SMALL_PAIRS = dict(SMALL, source='python_functions', inputs='summarize: {source}', targets='{docstring}')
SMALL_TOKENS = 8 * 64 * 20  # of 20 steps of 8 rows of 64 tokens
SMALL_WINDOW = 16  # tokens, fewer than a row has
SMALL_EXPERTS = 8
SMALL_WIDTH = 256  # of an expert, where it has one of its own


def smoke(c: Config) -> Config:
  """Shrinks any config to one that trains a few steps on a laptop, keeping its kind of everything."""
  objective = table.of(c)
  _shrink_model(c.model)
  _shrink_data(c.data, objective.given)
  if c.vocabulary.name == 'sentencepiece':
    c.vocabulary.update(path='', size=640, sentinels=32, train_characters=200_000)
  c.update(batch_size=8, microbatches=min(c.microbatches, 2), params_expected=0, init_from='', branch_from='',
           adapt=base().adapt)
  c.mesh.update(slice=1, data=1, fsdp=-1, fsdp_outer=1, expert=1, context=1, tensor=1)
  c.compile.options = {}
  c.schedule.warmup_steps = min(c.schedule.warmup_steps, 2)
  c.stop.update(tokens=SMALL_TOKENS, target='', patience=0, wall_time=0.0)
  c.log.every = 1
  c.evaluate.update(every=10, batches=2, limit=8)
  c.evaluate.tasks = tuple(task for task in c.evaluate.tasks if '/' not in task)  # which may need a download
  c.checkpoint.every = 10
  c.sample.update(prompts=(objective.example,), tokens=16)
  if choices.ARCHITECTURES[c.model.name].decoder_only:
    c.sample.prompts = ('',)
  _shrink_stages(c)
  return c


SMALL_VALUES: dict[str, int] = {  # the most that stages change keys to
    'data.target_len': 64,
    'batch_size': 8,
    'microbatches': 2,
    'model.window': SMALL_WINDOW,
    'model.window_after': SMALL_WINDOW,
    'model.encoder_window': SMALL_WINDOW + 1,
    'schedule.warmup_steps': 2,
}


def _shrink_stages(c: Config) -> None:
  """Stages spread evenly over the run; rows of the k-th one that changes their length have 64 (k + 1) tokens."""
  listed = []
  length = c.data.seq_len
  for number, stage in enumerate(c.stages, 1):
    small = dict(stage, tokens=SMALL_TOKENS * number // (len(c.stages) + 1))
    for key, most in SMALL_VALUES.items():
      if key in small:
        small[key] = min(small[key], most)
    if 'data.seq_len' in small:
      length += 64
      small['data.seq_len'] = length
    listed.append(small)
  c.stages = tuple(listed)


def _shrink_model(model: Section) -> None:
  has_fewer_key_heads = 0 < model.num_kv_heads < model.num_heads
  model.update(
      vocab_size=0,
      d_model=64,
      num_layers=max(2, len(model.layers), model.dense_first + model.sparse_every),
      experts=min(model.experts, SMALL_EXPERTS),
      experts_per_token=min(model.experts_per_token, 2),
      expert_d_ff=min(model.expert_d_ff, SMALL_WIDTH),
      expert_capacity=min(model.expert_capacity, SMALL_WINDOW),
      num_encoder_layers=0,
      window=min(model.window, SMALL_WINDOW),
      window_after=min(model.window_after, SMALL_WINDOW),
      encoder_window=min(model.encoder_window, SMALL_WINDOW + 1),
      num_heads=4,
      num_kv_heads=2 if has_fewer_key_heads else 0,
      head_dim=16,
      d_ff=128,
      max_positions=64 + choices.POSITIONS[model.position].first_row)


def _shrink_data(data: Section, is_paired: bool) -> None:
  """is_paired: the objective takes inputs and targets from the data."""
  for part in data.mixture.values():
    own = part.data if 'data' in part else {}
    part.data = dict(own, **(SMALL_PAIRS if 'targets' in own else SMALL))
  data.update(SMALL_PAIRS if is_paired else SMALL, field='text', seq_len=64, target_len=0)
  if is_paired or data.mixture:
    data.target_len = 64
  for number, stage in enumerate(data.stages.values(), 1):
    stage.tokens = SMALL_TOKENS * number // (len(data.stages) + 1)
