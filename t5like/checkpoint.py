"""Checkpoints: what is in one, when it counts, and where a run starts from.

A run starts from, in this order:
  1. the newest checkpoint in workdir/checkpoints that can be read;
  2. fresh parameters.

A checkpoint of step n holds `params`, `opt_state` and `train` (step and guard counters), each readable
alone, and `meta`: JSON with the config, the data's fingerprint, `tokens` and `examples_seen`. It
exists once Orbax has written its commit file; `train.py` saves only steps known to be finite.
"""
import contextlib
import functools

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from t5like import checksums
from t5like.errors import CheckpointError

_KEEP = ocp.training.preservation_policies


def _context():
  context = ocp.Context()
  registry = ocp.handlers.local_registry()
  registry.add(ocp.handlers.JsonHandler, checkpointable_name='meta')
  context.checkpointables.registry = registry
  # A rename is not enough: a kill during deletion would leave half a checkpoint that still counts.
  context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
  context.array.saving.use_compression = False  # 7 % smaller, up to 5 times slower on fp32 weights
  return context


def _translated(method):
  """Orbax's errors (of this call or of a save that failed behind it) as one CheckpointError."""
  @functools.wraps(method)
  def wrapped(self, *args, **kwargs):
    try:
      return method(self, *args, **kwargs)
    except CheckpointError:
      raise
    except Exception as e:
      raise CheckpointError(f'{self.directory}: {method.__name__} failed. {_cause(e)} Checkpoints '
                            'that were complete before are untouched.') from e
  return wrapped


def _cause(e):
  """The error at the root, on one line: Orbax wraps it in ones that name the wrong thing."""
  while e.__cause__ or e.__context__:
    e = e.__cause__ or e.__context__
  return f'{type(e).__name__}: {" ".join(str(e).split())[:500]}'


def _check(parts, meta):
  """CheckpointError when arrays are not those that were saved: Orbax notices only some of what disks do to them."""
  wrong = [path for path, found in checksums.of_tree(parts).items() if found != meta['checksums'][path]]
  if wrong:
    more = f' and {len(wrong) - 1} more arrays' if len(wrong) > 1 else ''
    raise CheckpointError(f'{wrong[0]}{more}: the values read are not those that were saved (their checksum differs).')


class Checkpoints:
  """The checkpoints of one run. Use as a context manager: leaving waits for saves under way."""

  def __init__(self, workdir, keep=2, keep_every=0):
    self.directory = epath.Path(workdir).absolute() / 'checkpoints'
    policies = [_KEEP.LatestN(keep)]
    if keep_every:
      policies.append(_KEEP.EveryNSteps(keep_every))
    try:
      self._orbax = ocp.training.Checkpointer(
          self.directory, context=_context(), cleanup_tmp_directories=True,
          preservation_policy=_KEEP.AnyPreservationPolicy(policies))
    except OSError as e:
      raise CheckpointError(f'cannot write checkpoints to {self.directory}: {_cause(e)}. Give another '
                            '--workdir.') from e

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    if kind is None:
      self.close()
      return
    with contextlib.suppress(Exception):  # an error is on its way already
      self._orbax.close()

  @property
  def steps(self):
    """Steps of the committed checkpoints, oldest first."""
    return sorted(c.step for c in self._orbax.checkpoints)

  @_translated
  def save(self, step, state, meta):
    """Starts saving; blocks only while arrays are copied to the host. `meta` must be JSON."""
    parts = dict(params=state['params'], opt_state=state['opt_state'],
                 train=dict(step=state['step'], guard=state['guard']))
    parts['meta'] = dict(meta, checksums=checksums.of_tree(parts))
    # A step that exists already is one that could not be read when this run went back before it.
    self._orbax.save_checkpointables_async(step, parts, force=True, overwrite=step in self.steps)

  @_translated
  def wait(self):
    self._orbax.wait()

  @_translated
  def close(self):
    self._orbax.close()

  @_translated
  def meta(self, step):
    return self._orbax.load_checkpointables(step, dict(meta=None))['meta']

  @_translated
  def params(self, step, abstract):
    """Parameters alone, in the shapes, dtypes and shardings of `abstract`."""
    found = self._orbax.load_checkpointables(step, dict(params=abstract, meta=None))
    _check(dict(params=found['params']), found['meta'])
    return found['params']

  def restore(self, abstract, say=print):
    """(state, meta) of the newest checkpoint that can be read, or None when there is none.

    `abstract` is the state's shapes and shardings, of any mesh. A damaged checkpoint is reported and
    the one before it taken; CheckpointError when none is left.
    """
    damaged = []
    for step in reversed(self.steps):
      try:
        return self._read(step, abstract)
      except Exception as e:
        damaged.append(f'step {step}: {_cause(e)}')
        say(f'The checkpoint of {damaged[-1]} Trying the one before it.')
    if damaged:
      raise CheckpointError(f'no checkpoint in {self.directory} can be read ({"; ".join(damaged)}). '
                            'Nothing was changed there; start again with another --workdir.')
    return None

  def _read(self, step, abstract):
    parts = dict(params=abstract['params'], opt_state=abstract['opt_state'],
                 train=dict(step=abstract['step'], guard=abstract['guard']), meta=None)
    found = self._orbax.load_checkpointables(step, parts)
    meta = found.pop('meta')
    _check(found, meta)
    return jax.block_until_ready(dict(params=found['params'], opt_state=found['opt_state'], **found['train'])), meta
