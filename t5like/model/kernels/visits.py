"""The label that a call of splash attention carries: which blocks it visits, for preflight/kernel_calls.py to price."""
import dataclasses
import re

LABEL = re.compile(r'splash_(\w+?)_b(\d+)_n(\d+)_h(\d+)_q(\d+)_k(\d+)_v(\d+)(?:_in(\d+))?')


@dataclasses.dataclass(frozen=True)
class Visits:
  """Of one call on one device: `pairs` of blocks are visited for each of `heads` heads of `rows` rows.

  calls: in this number of calls together, which are not alike but have one label.
  """
  mask: str  # 'causal', 'window' or 'full'
  rows: int
  heads: int
  head_dim: int
  block_q: int
  block_k: int
  pairs: int
  calls: int = 1

  @property
  def label(self) -> str:
    """For `jax.named_scope`."""
    shape = f'b{self.rows}_n{self.heads}_h{self.head_dim}'
    blocks = f'q{self.block_q}_k{self.block_k}_v{self.pairs}'
    label = f'splash_{self.mask}_{shape}_{blocks}'
    if self.calls > 1:
      label += f'_in{self.calls}'
    return label

  @property
  def product(self) -> float:
    """FLOPs of one product of matrices over the blocks that a call visits, in the mean of its calls."""
    block = self.block_q * self.block_k * self.head_dim
    return 2 * self.rows * self.heads * self.pairs * block / self.calls


def read(path: str) -> Visits | None:
  """The Visits whose label is in the path of an operation."""
  match = LABEL.search(path)
  if not match:
    return None
  mask, *numbers = match.groups(default='1')
  return Visits(mask, *map(int, numbers))
