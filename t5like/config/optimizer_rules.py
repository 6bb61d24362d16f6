"""The optimizers that `optimizer.name` may be, and the arguments that `optimizer.extra` may give them.

A table rather than what optax happens to hold: each of these was seen to train on stacks of layers and on meshes, and
a wrong name or argument is refused before JAX starts. Arguments that `config.optimizer` has keys for (b1, b2, eps,
weight_decay) may be given in `extra` too, which then counts.
"""
from collections.abc import Iterator
from typing import Any

from t5like.config.values import either, show
from t5like.nearest import suggestion

# name -> arguments beside the learning rate, each of the kind that ARGUMENTS says
OPTIMIZERS = {name: tuple(arguments.split()) for name, arguments in dict(
    acprop='b1 b2 eps eps_root weight_decay',
    adabelief='b1 b2 eps eps_root nesterov',
    adadelta='rho eps weight_decay',
    adafactor='weight_decay decay_rate clip_threshold min_dim_size_to_factor eps multiply_by_parameter_scale',
    adagrad='initial_accumulator_value eps',
    adam='b1 b2 eps eps_root mu_dtype nesterov',
    adamax='b1 b2 eps',
    adamaxw='b1 b2 eps weight_decay',
    adamw='b1 b2 eps eps_root mu_dtype weight_decay nesterov',
    adamw_rms='b1 b2 eps weight_decay',
    adan='b1 b2 b3 eps eps_root weight_decay',
    ademamix='b1 b2 b3 alpha eps eps_root mu_dtype weight_decay',
    adopt='b1 b2 eps mu_dtype nesterov use_clipping',
    amsgrad='b1 b2 eps eps_root mu_dtype',
    bert_adamw='b1 b2 eps weight_decay',
    cocob='alpha eps weight_decay',
    dadapt_adamw='betas eps estim_lr0 weight_decay',
    dog='eps weight_decay',
    dowg='init_estim_sq_dist eps weight_decay',
    fromage='min_norm',
    lamb='b1 b2 eps eps_root weight_decay',
    lars='weight_decay trust_coefficient eps momentum nesterov',
    lion='b1 b2 mu_dtype weight_decay',
    madgrad='momentum weight_decay eps',
    muon='b1 b2 eps weight_decay beta ns_steps nesterov preconditioning consistent_rms adam_scale',
    noisy_sgd='eta gamma key seed',
    novograd='b1 b2 eps eps_root weight_decay',
    optimistic_adam_v2='alpha beta b1 b2 eps eps_root mu_dtype nesterov',
    optimistic_gradient_descent='alpha beta',
    prodigy='betas beta3 eps estim_lr0 estim_lr_coef weight_decay safeguard_warmup',
    radam='b1 b2 eps eps_root threshold nesterov',
    rmsprop='decay eps initial_scale eps_in_sqrt centered momentum nesterov bias_correction',
    schedule_free_adamw='b1 b2 eps weight_decay weight_lr_power',
    schedule_free_sgd='b1 weight_decay weight_lr_power',
    sgd='momentum nesterov accumulator_dtype',
    sign_sgd='',
    signum='beta accumulator_dtype',
    simplified_ademamix='b1 b2 alpha eps eps_root weight_decay',
    yogi='b1 b2 eps',
).items()}

# What optax has beside these, and why it is left out.
LEFT_OUT = dict(
    dpsgd='clips the gradient of each example by itself, and a step has only their sum',
    galore='takes singular values of whole matrices, which lie in pieces on devices and in stacks of layers here',
    lbfgs='searches along a line with the loss itself, which a step evaluates once',
    momo='needs the loss beside its gradient',
    momo_adam='needs the loss beside its gradient',
    optimistic_adam='takes no schedule of learning rates; optimistic_adam_v2 does',
    rprop='takes no schedule of learning rates, and signs of whole-dataset gradients',
    schedule_free='wraps another optimizer; schedule_free_adamw and schedule_free_sgd are whole',
    sm3='takes no schedule of learning rates, and its statistics would mix the layers of a stack',
    sophia='needs second derivatives of the loss',
)

# What should be known before one of these is used.
_NO_AVERAGE = ('validations, checkpoints and exports have the parameters at which gradients are taken, not the average '
               'that the paper evaluates (Defazio et al. 2024, arXiv 2405.15682)')
NOTES = dict(schedule_free_adamw=_NO_AVERAGE, schedule_free_sgd=_NO_AVERAGE)

# Their norms and moments are of a whole array, so that each layer of a stack has to be handed to them by itself.
LAYER_BY_LAYER = ('fromage', 'lamb', 'lars', 'novograd')
# These reduce over arrays in ways that explicit layouts do not allow: XLA chooses the layouts inside.
LAYOUTS_BY_XLA = ('dadapt_adamw', 'prodigy')


def _share(value: Any) -> bool:
  return _number(value) and 0 <= value < 1


def _number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _at_least_0(value: Any) -> bool:
  return _number(value) and value >= 0


def _count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2 ** 31


def _seed(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2 ** 32


def _switch(value: Any) -> bool:
  return isinstance(value, bool)


def _dtype(value: Any) -> bool:
  return value in ('bfloat16', 'float32')


def _exponent(value: Any) -> bool:
  return _number(value) and 0 < value <= 1


def _two_shares(value: Any) -> bool:
  return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_share, value))


def _preconditioning(value: Any) -> bool:
  return value in ('frobenius', 'spectral', 'aol', 'schatten')


# kind of argument: (whether a value fits, what it needs, names); one of a None default may be None
ARGUMENTS = {name: (fits, words) for fits, words, names in (
    (_share, 'a number, at least 0 and below 1',
     'b1 b2 b3 beta beta3 rho decay momentum'),
    (_exponent, 'a number, above 0 and at most 1', 'decay_rate'),  # of adafactor: beta2 is 1 - step ** -decay_rate
    (_number, 'a number', 'alpha threshold weight_lr_power gamma'),
    (_at_least_0, 'a number, at least 0',
     'eps eps_root weight_decay initial_accumulator_value initial_scale clip_threshold estim_lr0 estim_lr_coef eta '
     'init_estim_sq_dist min_norm trust_coefficient consistent_rms adam_scale'),
    (_count, 'a whole number, at least 1', 'min_dim_size_to_factor ns_steps'),
    (_seed, 'a whole number, at least 0 and below 2^32', 'key seed'),
    (_switch, 'True or False',
     'nesterov use_clipping multiply_by_parameter_scale eps_in_sqrt centered bias_correction safeguard_warmup'),
    (_dtype, "'bfloat16' or 'float32'", 'mu_dtype accumulator_dtype'),
    (_two_shares, 'two numbers, at least 0 and below 1, such as (0.9, 0.999)', 'betas'),
    (_preconditioning, "'frobenius', 'spectral', 'aol' or 'schatten'", 'preconditioning'),
) for name in names.split()}
for _name_of, _takes in OPTIMIZERS.items():
  for _argument in _takes:
    if _argument not in ARGUMENTS:
      raise NotImplementedError(f'optimizer.name={_name_of!r} takes {_argument}, of which ARGUMENTS in '
                                't5like/config/optimizer_rules.py does not say which values fit.')
MAY_BE_NONE = ('momentum', 'consistent_rms', 'beta3', 'init_estim_sq_dist', 'mu_dtype', 'accumulator_dtype')
ONE_OF = dict(noisy_sgd=('seed', 'key'))  # two names of one argument, which has no default
# Of two sides in optax they are weights rather than shares.
UNBOUNDED = dict(optimistic_adam_v2=('beta',), optimistic_gradient_descent=('beta',))


def check(c: Any) -> Iterator[str]:
  """Yields what is wrong with `optimizer.name` and `optimizer.extra` of a config."""
  yield from problems(c.optimizer)


def problems(optimizer: Any) -> Iterator[str]:
  """Likewise, of `config.optimizer`."""
  name, extra = optimizer.name, dict(optimizer.extra)
  if name not in OPTIMIZERS:
    yield _unknown(name)
    return
  takes = OPTIMIZERS[name]
  for key, value in extra.items():
    where = f'optimizer.extra.{key}={show(value)}'
    if key == 'learning_rate':
      yield 'optimizer.extra.learning_rate: set optimizer.learning_rate instead.'
    elif key not in takes:
      listed = f'It takes {", ".join(takes)}.' if takes else 'It takes none.'
      yield f'{where}: {name} has no such argument. {suggestion(key, takes)}{listed}'
    else:
      yield from _value(name, key, value, where)
  needed = ONE_OF.get(name, ())
  if needed and not set(needed) & set(extra):
    yield f'optimizer.name={name!r}: needs optimizer.extra.{needed[0]}, {ARGUMENTS[needed[0]][1]}.'


def _value(name, key, value, where):
  fits, words = ARGUMENTS[key]
  if key in UNBOUNDED.get(name, ()):
    fits, words = _number, 'a number'
  if value is None and key in MAY_BE_NONE:
    return
  if not fits(value):
    yield f'{where}: needs {words}{", or None" if key in MAY_BE_NONE else ""}.'


def _unknown(name):
  if name in LEFT_OUT:
    return (f'optimizer.name={name!r}: optax has it, but it cannot be used here: it {LEFT_OUT[name]}. '
            f'There is {either(OPTIMIZERS)}.')
  # What optax calls scale_by_NAME is a part of NAME.
  meant = suggestion(name.lower().removeprefix('scale_by_'), OPTIMIZERS)
  return f'optimizer.name={show(name)}: there is no such optimizer. {meant}There is {either(OPTIMIZERS)}.'
