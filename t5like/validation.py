"""Loss on text that a model was not trained on."""
import jax

from t5like import metrics, plain_json, sharding
from t5like.data import pipeline
from t5like.objectives import table


def measure(store, config, eval_step, params, mesh, alive):
  """{nll (nats), perplexity, accuracy, bits_per_byte, ...} of the validation set, of a mixture's parts as 'part/nll'.

  eval_step: of `build.build_step`; alive: called after each batch.
  """
  sums = []
  mine = sharding.rows_of_host(mesh, config.batch_size)
  for name, batch in pipeline.evaluation_batches(store, config, 'validation', mine):
    sums.append((name, eval_step(params, sharding.to_global(mesh, batch))))
    alive()
  sums = [(name, {k: v.item() for k, v in s.items()}) for name, s in jax.device_get(sums)]
  add = lambda wanted: {k: sum(s[k] for name, s in sums if wanted in (None, name))
                        for k in ('nll', 'hits', 'weights')}
  values = metrics.summary(add(None), _bytes_per_token(store, config))
  names = list(dict.fromkeys(name for name, _ in sums))
  for name in names if len(names) > 1 else ():
    part = metrics.summary(add(name), 0)
    values.update({f'{name}/{k}': part[k] for k in ('nll', 'perplexity', 'accuracy', 'tokens')})
  return values


def known(values):
  """What `measure` gave, as a checkpoint has it (null for what was not finite), in numbers; None if there was none."""
  return values and {key: plain_json.number(value) for key, value in values.items()}


def lines(values, step):
  """What is said of the values of `measure`."""
  yield f'step {step:,}  {metrics.describe(values)}'
  for name in [key.removesuffix('/nll') for key in values if key.endswith('/nll')]:
    part = {key.removeprefix(f'{name}/'): v for key, v in values.items() if key.startswith(f'{name}/')}
    yield f'  {name}: {metrics.describe(part)}'


def _bytes_per_token(store, config):
  """Of validation text, where each token of it is predicted once; else 0."""
  if not table.of(config).predicts_each_token or config.data.mixture:
    return 0
  split = store.manifest['splits']['validation']
  return split['bytes'] / split['tokens']
