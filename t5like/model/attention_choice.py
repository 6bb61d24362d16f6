"""Which attention kernel runs, and why."""
from t5like import choices
from t5like.model.attention_kernels import KERNELS, AttentionSpec

# Why XLA computes a feature that no other kernel has.
ONLY_XLA = dict(
    decoding='decoding token by token',
)
Tried = tuple[tuple[str, ...], str]  # kernels to be tried before XLA, why these
OF_PLATFORMS: dict[str, Tried] = dict(
    tpu=(('splash', 'relative_bias'), 'a TPU'),
    gpu=(('cudnn',), 'a GPU'),
    cpu=(('cpu_blocks',), 'a CPU'),
)


def _auto(platform: str) -> Tried:
  return OF_PLATFORMS[platform]


def _xla(platform: str) -> Tried:
  return (), 'model.attention asks for it'


def _splash(platform: str) -> Tried:
  return ('splash', 'relative_bias'), 'model.attention asks for it'


def _cudnn(platform: str) -> Tried:
  return ('cudnn',), 'a GPU'


# model.attention -> (platform -> what is tried).
REQUESTS = choices.implement('model.attention', choices.ATTENTION, dict(
    auto=_auto,
    xla=_xla,
    splash=_splash,
    cudnn=_cudnn,
))


def choose_kernel(request: str, platform: str, spec: AttentionSpec) -> tuple[str, str]:
  """Which of KERNELS attention runs, and why.

  Args:
    request: model.attention.
    platform: 'tpu', 'gpu' or 'cpu'.
    spec: what has to be computed.

  Returns:
    (name, reason): XLA where no kernel that is asked for implements all of it, and then the reason is why.

  Raises:
    NotImplementedError: XLA does not implement it either.
  """
  for feature in spec.features:
    if feature not in KERNELS['xla'].features:
      value = getattr(spec, feature)
      raise NotImplementedError(
          f'attention with {feature}={value!r}: no kernel of t5like/model/attention_kernels.py is known to '
          'implement it.')
  tried, reason = REQUESTS[request](platform)
  if request != 'xla':
    only_xla = _why_only_xla(spec)
    if only_xla:
      return 'xla', only_xla
  declined = ''
  for name in tried:
    why_not = KERNELS[name].declines(spec, platform)
    if not why_not:
      return name, reason
    if not declined:
      declined = why_not
  return 'xla', declined or reason


def _why_only_xla(spec: AttentionSpec) -> str:
  """Why no other kernel, on any platform, computes this, or ''."""
  known = _features_of_others()
  for feature in spec.features:
    if feature in known:
      continue
    if feature in ONLY_XLA:
      return ONLY_XLA[feature]
    return f'only it implements {feature} here'
  return ''


def _features_of_others() -> set[str]:
  """What any kernel but XLA implements."""
  known: set[str] = set()
  for name, kernel in KERNELS.items():
    if name != 'xla':
      known |= kernel.features
  return known
