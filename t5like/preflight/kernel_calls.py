"""The work of a call of a kernel, so that a compiled program can be priced (prediction.py).

Kernels are known by their names, and their work by the metadata written with them: for splash, which says nothing of
its work, a label in the path of its operation; for the kernel with a bias the cost that it states. Both count the
blocks that a mask leaves to be visited. Products of experts cost what they state, times the share of rows that are
there when tokens are spread evenly over experts. Shapes of operands are never read.
"""
import re

from t5like.model.kernels import balanced
from t5like.model.kernels.visits import Visits, read
from t5like.preflight.hlo import Op, Unreadable

# Products of matrices for each pair of blocks that a kernel of the splash library visits. Its backward pass is fused:
# all gradients in one kernel (`use_fused_bwd_kernel`), so that there is no other named dq.
SPLASH = {'splash_mha_fwd': 2, 'splash_mha_dkv': 5}
WITH_COST = (
    'relative_bias_forward',
    'relative_bias_causal_forward',
    'relative_bias_window_forward',
    'relative_bias_backward',
    'relative_bias_causal_backward',
    'relative_bias_window_backward',
)
# Megablox states what all rows would cost that there is room for; it visits those that there are.
OF_GROUPS = ('gmm', 'tgmm')


def flops(op: Op) -> float:
  """Of a Pallas call of a compiled module.

  Raises:
    Unreadable: a kernel that is not known, or that does not say what it computes.
  """
  path = f'{op.origin}/{op.name}'
  for name, products in SPLASH.items():
    if name in path:
      return products * _splash_visits(op).product
  for name in WITH_COST:
    if re.search(rf'{name}(?![a-z])', path):
      return _stated_cost(op)
  for name in OF_GROUPS:
    if f'jit({name})' in path:
      return balanced.share(path) * _stated_cost(op)
  origin = op.origin or 'of no known origin'
  known = ', '.join([*SPLASH, *WITH_COST, *OF_GROUPS])
  raise Unreadable(f'the Pallas kernel %{op.name} ({origin}) is not known, so its time is not either. '
                   f'Known are {known}')


def _splash_visits(op: Op) -> Visits:
  visits = read(op.origin)
  if visits is None:
    raise Unreadable(f'the call %{op.name} of splash attention does not say which blocks it visits ({op.origin})')
  return visits


def _stated_cost(op: Op) -> int:
  cost = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', op.attributes)
  if cost is None:
    raise Unreadable(f'the kernel %{op.name} does not state its cost')
  return int(cost[1])
