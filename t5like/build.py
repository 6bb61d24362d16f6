"""From a config to the pieces of a run: data, vocabulary, model, optimizer and compiled steps."""
import jax

from t5like import config as config_lib, histograms, lengths, optim, sharding, step as step_lib
from t5like.data import datasets, prepare, store as store_lib
from t5like.data.vocabulary_check import check_vocabulary
from t5like.errors import ConfigError, DataError
from t5like.model import layers, transformer


def open_data(config, say=print):
  """The prepared dataset of a config, or those of a mixture; prepared now when this is the only process."""
  configs = datasets.datasets(config)
  for c in configs.values():
    datasets.fetch(c, say)
  folders = {name: datasets.folder(c) for name, c in configs.items()}
  missing = [folder for folder in folders.values() if not (folder / 'manifest.json').exists()]
  if missing:
    if jax.process_count() > 1:
      raise DataError(f'no prepared dataset in {missing[0]}: run python main.py prepare with this '
                      'config once, on one machine, before training on many.')
    prepare.prepare(config, say)
  opened = {folder: store_lib.open_store(folder) for folder in folders.values()}
  store = next(iter(opened.values())) if len(opened) == 1 else store_lib.Stores(
      {name: opened[folder] for name, folder in folders.items()})
  if 'validation' not in store.splits:
    raise DataError(f'{store.folder} holds no validation text, so nothing could be said of the model. Delete that '
                    'folder, and prepare keeps a document for it; or give data.validation files of their own, or '
                    "set it to 'tail'.")
  check_vocabulary(config, store.vocabulary)
  return store


def with_vocabulary(config, vocabulary):
  """The config with every size known; ConfigError when the model cannot hold the vocabulary."""
  config = config_lib.resolve(config)
  size, asked = vocabulary.size, config.model.vocab_size
  if not asked:
    with config.unlocked():
      config.model.vocab_size = -(-size // 128) * 128
  elif asked < size:
    raise ConfigError(f'model.vocab_size={asked}, but the vocabulary has {size} pieces, ids up to '
                      f'{size - 1}: set at least {size} ({-(-size // 128) * 128} is a multiple of 128).')
  return config


def build_model(config):
  """Model of a resolved config; checks params_expected. Needs a mesh in force."""
  model = transformer.build(transformer.ModelConfig(**config.model))
  count = transformer.count_params(model)
  if config.params_expected and count != config.params_expected:
    raise ConfigError(f'params_expected={config.params_expected:,}, but this model has {count:,} '
                      'parameters. Correct the model section, or set params_expected to 0.')
  return model, count


def flops_per_row(config, model):
  """Multiplications and additions of one row of training, of what has gradients (`model/flops.py`)."""
  rates = optim.rates(config.optimizer, model.parameters)
  return transformer.flops_per_row(model, lengths.shapes(config), rates)


def parameters(config):
  """{path: (shape, rates)} of a resolved config, from shapes alone; rates as of `trained.rates`, whose ConfigError
  it raises. A vocabulary whose size is not known yet has size 0."""
  with no_devices():
    model = transformer.build(transformer.ModelConfig(**config.model))
  rates = optim.rates(config.optimizer, model.parameters)
  return {path: (param.shape, rates[path]) for path, param in model.parameters.items()}


def merged(config, params):
  """(config, params) of the same model without adapters (LoRA): what they add is in its weights then."""
  c = transformer.ModelConfig(**config.model)
  if not c.lora_rank:
    return config, params
  with no_devices():
    declared = transformer.build(c).parameters
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.model.lora_rank = 0
  return config, jax.jit(lambda params: layers.merged(params, declared, c))(params)


def rows_per_device(config, mesh):
  """Rows of a micro-batch that a device gets; ConfigError when batch_size cannot be divided among them."""
  pieces = config.microbatches * sharding.batch_shards(mesh)
  if config.batch_size % pieces:
    raise ConfigError(f'batch_size={config.batch_size} is not divisible by microbatches x mesh.data x '
                      f'mesh.fsdp = {pieces}: try {max(1, config.batch_size // pieces) * pieces}.')
  return config.batch_size // pieces


def build_optimizer(config, model, total_steps):
  """(tx, rates) of a resolved config whose schedule ends at total_steps; rates: of each parameter, `optim.rates`."""
  learning_rate = optim.schedule(config.schedule, config.optimizer.learning_rate, total_steps)
  rates = optim.rates(config.optimizer, model.parameters)
  return optim.at_rates(optim.build(config.optimizer, learning_rate, model.parameters), rates), rates


def build_step(config, model, total_steps, mesh):
  """(tx, train_step, eval_step, count) of a config whose schedule ends at total_steps.

  The steps are compiled when first called; train_step(state, batch) takes the state's memory. count: see histograms.
  """
  tx, rates = build_optimizer(config, model, total_steps)
  rows = rows_per_device(config, mesh)
  vocab = config.model.vocab_size // mesh.shape['tensor']
  shapes, context = lengths.shapes(config), mesh.shape['context']
  for length in filter(None, (shapes.inputs, shapes.targets)):
    if length % context:  # which the rules of configs cannot know of mesh.context=-1
      raise ConfigError(f'mesh.context={config.mesh.context} is {context} on these devices, which does not divide rows '
                        f'of {length} tokens: give mesh.context a number that does, and -1 to another axis.')
  predictions = -(-(shapes.predictions or shapes.targets) // context)
  chunks = step_lib.num_chunks(config.loss.chunks, predictions, rows, vocab, mesh.devices.flat[0].platform)
  sums = step_lib.make_sums(model, config.loss, chunks)
  gradients = step_lib.make_gradients(optim.without_frozen(sums, rates), config.microbatches)
  train_step = step_lib.make_train_step(gradients, tx, seed=config.seed, clip_norm=config.optimizer.clip_norm,
                                        spike_loss=config.guard.spike_loss, spike_norm=config.guard.spike_norm)
  options = config.compile.options.to_dict() or None
  return (tx, jax.jit(train_step, donate_argnums=0, compiler_options=options), jax.jit(sums),
          jax.jit(histograms.make(gradients, model.parameters)))


def no_devices():
  """A context in which shapes can be found without any device: none is asked, none need be there."""
  axes = (jax.sharding.AxisType.Explicit,) * len(sharding.AXES)
  return jax.sharding.use_abstract_mesh(
      jax.sharding.AbstractMesh((1,) * len(sharding.AXES), sharding.AXES, axis_types=axes))


def sizes(config):
  """Parameters and FLOPs of a resolved config, from shapes alone: no device is asked to do anything."""
  with no_devices():
    model, count = build_model(config)
    flops = flops_per_row(config, model)
  return dict(parameters=count, flops_per_token=flops // config.data.seq_len,
              flops_per_step=flops * config.batch_size,
              flops_in_all=flops * config.stop.tokens // config.data.seq_len)
