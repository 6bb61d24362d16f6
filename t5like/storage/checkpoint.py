"""Checkpoints: their content, when they count, and where a run starts from.

A run starts from, in this order:
  1. the newest checkpoint in workdir/checkpoints that can be read;
  2. fresh parameters.

A checkpoint of step n holds `params`, `opt_state`, `train` (step and guard counters) and, of runs with optimizer.ema,
`ema` (averaged parameters), each readable alone, and `meta`: JSON with the config, the data's fingerprint, `tokens` and
`examples_seen`. It exists once Orbax has written its commit file; `training/saving.py` saves only steps known to be
finite.
"""
import contextlib
import ctypes
import functools
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from t5like import sharding
from t5like.errors import CheckpointError
from t5like.files import plain_json, schema
from t5like.files.schema import List, Maybe, Object, Text, Whole
from t5like.storage import checksums, pagecache

_KEEP = ocp.training.preservation_policies
COMMITTED = 'commit_success.txt'  # Orbax's, written last
VALIDATION = Object(dict(step=Whole()), ('step',))
STOPPER = Object(dict(waited=Whole()), ('waited',))
# A checkpoint's facts about itself, beyond those needed to read its arrays.
FACTS = dict(
    step=Whole(),
    tokens=Whole(),
    examples_seen=Whole(),
    rewinds=Whole(),
    skipped=List(List(Whole(), 2, 2)),
    stages=List(List(Whole(), 2, 2)),
    validation=Maybe(VALIDATION),
    stopper=STOPPER,
    config=Text(),
    data=Text(),
    vocabulary=Text(),
    checksums=Object())
META = Object(FACTS, ('checksums',))
REMINDER = 300.0  # seconds between warnings that saves still fail
EMA = 'ema'  # the part of averaged parameters, of runs that keep them
READS = 10  # that the arrays of a checkpoint are restored in: read together, many of them are in host memory twice
State = dict[str, Any]  # params, opt_state, step, guard: arrays, or jax.ShapeDtypeStruct with shardings
Meta = dict[str, Any]


logging.getLogger('absl').addFilter(lambda record: 'Skipping merge of OCDBT' not in record.getMessage())


def _context(directory: Any) -> ocp.Context:
  context = ocp.Context()
  registry = ocp.handlers.local_registry()
  registry.add(ocp.handlers.JsonHandler, checkpointable_name='meta')
  context.checkpointables.registry = registry
  # A rename is not enough: a kill during deletion would leave half a checkpoint that still counts.
  context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
  context.array.saving.use_compression = False  # 7 % smaller, up to 5 times slower on fp32 weights
  # Few large objects for stores where each costs time. On a disk, a file for each piece is up to 7 times faster.
  context.array.saving.use_ocdbt = '://' in str(directory)
  return context


def _translated(method: Callable[..., Any]) -> Callable[..., Any]:
  """Turns Orbax's errors (of this call or of a save that failed in the background) into one CheckpointError."""
  @functools.wraps(method)
  def wrapped(self: 'Checkpoints', *args: Any, **kwargs: Any) -> Any:
    try:
      return method(self, *args, **kwargs)
    except CheckpointError:
      raise
    except Exception as e:
      sharding.blame_peers(e)
      raise CheckpointError(f'{self.directory}: {method.__name__} failed. {_cause(e)} Checkpoints '
                            'that were complete before are untouched.') from e
  return wrapped


def _cause(e: BaseException) -> str:
  """The error at the root, on one line: Orbax wraps it in ones that name the wrong thing."""
  root = e
  while inner := root.__cause__ or root.__context__:
    root = inner
  return f'{type(root).__name__}: {" ".join(str(root).split())[:500]}'


def _check(parts: dict[str, Any], meta: Meta) -> None:
  """CheckpointError when arrays are not those that were saved: Orbax notices only some damage of disks."""
  saved = meta['checksums']
  wrong = [path for path, checksum in checksums.of_tree(parts).items() if checksum != saved[path]]
  if not wrong:
    return
  more = ''
  if len(wrong) > 1:
    more = f' and {len(wrong) - 1} more arrays'
  raise CheckpointError(f'{wrong[0]}{more}: the values read are not those that were saved (their checksum differs).')


def _sealed(meta: Meta) -> Meta:
  """`meta` as it comes back from JSON, with a digest of itself."""
  rest = json.loads(plain_json.dumps(_without_digest(meta)))
  return dict(rest, digest=_digest(rest))


def _digest(meta: Meta) -> str:
  """Of all but the digest itself. Of NaN too, which checkpoints of older versions may hold."""
  text = json.dumps(_without_digest(meta), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _without_digest(meta: Meta) -> Meta:
  return {key: value for key, value in meta.items() if key != 'digest'}


def _parts_of(state: State) -> dict[str, Any]:
  """{part of a checkpoint: its tree} of a state."""
  train = dict(step=state['step'], guard=state['guard'])
  parts = dict(params=state['params'], opt_state=state['opt_state'], train=train)
  if EMA in state:
    parts[EMA] = state[EMA]
  return parts


def _state_of(parts: dict[str, Any]) -> State:
  state = dict(params=parts['params'], opt_state=parts['opt_state'], **parts['train'])
  if EMA in parts:
    state[EMA] = parts[EMA]
  return state


def _trim() -> None:
  """Returns freed memory to the system: glibc keeps it, for each thread that reads a part."""
  with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).malloc_trim(0)


class _Best:
  """Orbax's policy of keeping the n steps with the least of `nlls`, {step: nats}.

  Orbax's own would write each number to a file without which, or if it is damaged, no checkpoint could be read.
  """

  def __init__(self, nlls: dict[int, float], n: int) -> None:
    self.nlls = nlls
    self.n = n

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Whether to keep each of the checkpoints."""
    steps = [c.step for c in checkpoints]
    validated = [(self.nlls[step], step) for step in steps if step in self.nlls]
    validated.sort()
    best = {step for _, step in validated[:self.n]}
    return [step in best for step in steps]


class Checkpoints:
  """The checkpoints of one run. Use as a context manager: leaving waits for saves under way.

  Args:
    workdir: of the run.
    keep: see config.checkpoint.
    keep_every: see config.checkpoint.
    keep_best: see config.checkpoint.
    say: called with lines for people.
    attempts: a save that fails is reported, its remains are deleted, and the next save is tried; CheckpointError when
      this many consecutive ones have failed, over at least `patience` seconds.
    patience: see attempts.
    tidy: delete the remains of saves that were killed; only for the process that trains there: to others a save
      under way looks the same.
  """

  def __init__(
      self,
      workdir: Any,
      keep: int = 2,
      keep_every: int = 0,
      keep_best: int = 0,
      say: Callable[[str], None] = print,
      attempts: int = 1,
      patience: float = 0.0,
      tidy: bool = False,
  ) -> None:
    self.directory = epath.Path(workdir).absolute() / 'checkpoints'
    self.say = say
    self.tidy = tidy
    self.attempts = attempts
    self.patience = patience
    self._forget_failures()
    self.error = ''  # why the newest save failed
    self.under_way: int | None = None  # the step that is being saved
    self.response: Any = None  # Orbax's, of that save
    self.dropping: pagecache.Dropping | None = None
    self.nlls: dict[int, float] = {}  # {step: validation nll in nats}
    self.policies: list[Any] = [_KEEP.LatestN(keep)]
    if keep_every:
      self.policies.append(_KEEP.EveryNSteps(keep_every))
    if keep_best:
      self.policies.append(_Best(self.nlls, keep_best))
    self._open()
    if keep_best:
      self._note_all()

  def _forget_failures(self) -> None:
    self.failures = 0  # consecutive ones
    self.failing_since: float | None = None  # monotonic seconds
    self.warned_at = -math.inf  # monotonic seconds

  def _open(self) -> None:
    try:
      if self.tidy and jax.process_index() == 0:
        self._tidy()
      policy: Any = _KEEP.AnyPreservationPolicy(self.policies)
      self._orbax = ocp.training.Checkpointer(
          self.directory,
          context=_context(self.directory),
          cleanup_tmp_directories=False,
          preservation_policy=policy,
      )
    except OSError as e:
      raise CheckpointError(
          f'cannot write checkpoints to {self.directory}: {_cause(e)}. Give another --workdir.') from e

  def _tidy(self) -> None:
    """Deletes the remains of saves that failed or were killed: they would keep a full disk full."""
    if not self.directory.exists():
      return
    for folder in self.directory.iterdir():
      mark = folder / COMMITTED
      if folder.is_dir() and not mark.exists():
        folder.rmtree()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    if kind is None:
      self.close()
      return
    with contextlib.suppress(Exception):  # an error is on its way already
      self._orbax.close()
    self._ended()

  @property
  def steps(self) -> list[int]:
    """Steps of the committed checkpoints, oldest first."""
    return sorted(c.step for c in self._orbax.checkpoints)

  def save(self, step: int, state: State, meta: Meta) -> bool:
    """Starts saving, once the save before is done; blocks only while arrays are copied to the host.

    Args:
      step: of the checkpoint.
      state: all arrays.
      meta: JSON; its `validation` is the newest {step, nll}.

    Returns:
      Whether the save was started.
    """
    self.wait()
    try:
      self._check_space(state)
      parts = _parts_of(state)
      sums = checksums.of_tree(parts)
      parts['meta'] = _sealed(dict(meta, checksums=sums))
      # A step that exists already is one that could not be read, or one after the target of a rewind.
      self._note(parts['meta'])
      self._start(step, parts)
    except CheckpointError as error:
      self._failed(error)
      return False
    return True

  @_translated
  def _start(self, step: int, parts: dict[str, Any]) -> None:
    self.under_way = step
    folder = self.directory / str(step)
    self.dropping = pagecache.Dropping(folder, folder / COMMITTED)
    exists = step in self.steps
    self.response = self._orbax.save_checkpointables_async(
        step,
        parts,
        force=True,
        overwrite=exists,
    )

  def _note_all(self) -> None:
    """Notes the validations of the checkpoints that exist."""
    for step in self.steps:
      with contextlib.suppress(CheckpointError):  # a damaged one is not the best
        self._note(self.meta(step))

  def _note(self, meta: Meta) -> None:
    validation = meta.get('validation')
    if not validation or validation['step'] != meta['step']:
      return
    nll = plain_json.number(validation['nll'])
    if math.isnan(nll):
      nll = math.inf  # the worst there is
    self.nlls[meta['step']] = nll

  def _check_space(self, state: State) -> None:
    """CheckpointError if the disk is known to be too full."""
    if '://' in str(self.directory):
      return
    size = sum(array.nbytes for array in jax.tree.leaves(state))
    free = math.inf
    if jax.process_index() == 0:
      with contextlib.suppress(OSError):  # a folder that has gone is noticed when it is written to
        free = shutil.disk_usage(self.directory).free
    if jax.process_count() > 1:  # all processes decide alike
      free = float(multihost_utils.broadcast_one_to_all(np.float32(free)))
    if free < size:
      raise CheckpointError(
          f'{self.directory} has {free / 1e9:.3g} GB free, and a checkpoint takes {size / 1e9:.3g} GB. Free space '
          'there, or set checkpoint.keep and checkpoint.keep_every lower.')

  def _failed(self, error: CheckpointError) -> None:
    """Reports a save that failed; raises CheckpointError if it was the last attempt."""
    now = time.monotonic()
    self.failures += 1
    self.error = str(error)
    self.failing_since = self.failing_since or now
    self._ended()
    with contextlib.suppress(Exception):
      self._orbax.close()
    with contextlib.suppress(CheckpointError):  # a folder that has gone, say: the next save fails, and tries again
      self._open()
    newest = 'There is no checkpoint yet.'
    if self.steps:
      newest = f'The newest checkpoint is of step {self.steps[-1]:,}.'
    seconds = now - self.failing_since
    if self.failures >= self.attempts and seconds >= self.patience:
      raise CheckpointError(f'{error} {newest} (Consecutive saves that failed: {self.failures}.)') from error
    if now - self.warned_at >= REMINDER:
      self.warned_at = now
      self.say(f'WARNING: a checkpoint could not be saved, training continues, the next save tries again. {error} '
               f'{newest}')

  def wait(self) -> bool:
    """Waits for the save under way; returns whether it succeeded. One that failed is reported, as `save` does."""
    if self.under_way is None:
      return True
    step = self.under_way
    try:
      self._wait()
    except CheckpointError as error:
      self._failed(error)
      return False
    self._ended()
    if self.failures:
      self.say(f'Checkpoints can be saved again: step {step:,} is, after {self.failures} saves that failed.')
    self._forget_failures()
    return True

  def _ended(self) -> None:
    self.under_way = None
    self._release()
    if self.dropping:
      self.dropping.close()

  def _release(self) -> None:
    """Ends the thread of Orbax's response and closes its descriptors: they stay until its result is read."""
    response = self.response
    self.response = None
    if response:
      with contextlib.suppress(Exception):  # `_wait` raises it too
        response.result()

  @_translated
  def _wait(self) -> None:
    self._release()
    self._orbax.wait()
    folder = self.directory / str(self.under_way)
    is_committed = self.under_way in self.steps
    if not is_committed or not folder.exists():
      raise CheckpointError(f'{folder} is missing after the save; was the folder deleted?')

  @_translated
  def close(self) -> None:
    """Waits for the save under way and ends."""
    self._orbax.close()
    self._ended()

  @_translated
  def meta(self, step: int) -> Meta:
    """The `meta` of a checkpoint."""
    parts = self._orbax.load_checkpointables(step, dict(meta=None))
    return self._intact(parts['meta'])

  def _intact(self, meta: Any) -> Meta:
    if not isinstance(meta, dict) or meta.get('digest') != _digest(meta):
      raise CheckpointError('meta: the values read are not those that were saved (their digest differs).')
    try:
      META.check(meta, 'meta')
    except schema.Invalid as error:
      raise CheckpointError(f'{error}.') from error
    return meta

  @_translated
  def params(self, step: int, abstract: Any, ema: bool = False) -> Any:
    """Parameters alone, or those of the moving average, in the shapes, dtypes and shardings of `abstract`."""
    name = EMA if ema else 'params'
    parts = self._orbax.load_checkpointables(step, {name: abstract, 'meta': None})
    meta = self._intact(parts['meta'])
    params = parts[name]
    _check({name: params}, meta)
    return params

  def restore(
      self,
      abstract: State,
      say: Callable[[str], None] = print,
      counts: Callable[[int, Meta], bool] | None = None,
  ) -> tuple[State, Meta] | None:
    """The newest checkpoint that can be read.

    Args:
      abstract: the state's shapes and shardings, of any mesh.
      say: called with a line for each damaged checkpoint; the one before it is tried then.
      counts: whether a checkpoint is to be considered, by its step and meta; None: all are.

    Returns:
      (state, meta), or None when there is no checkpoint.

    Raises:
      CheckpointError: when all of them are damaged.
    """
    damaged = []
    for step in reversed(self.steps):
      try:
        meta = self.meta(step)
        if counts is None or counts(step, meta):
          return self._read(step, abstract, meta), meta
      except Exception as e:
        sharding.blame_peers(e)
        damage = f'step {step}: {_cause(e)}'
        damaged.append(damage)
        say(f'The checkpoint of {damage} Trying the one before it.')
    if not damaged:
      return None
    listed = '; '.join(damaged)
    raise CheckpointError(
        f'no checkpoint in {self.directory} can be read ({listed}). Nothing was changed there; start again with '
        'another --workdir.')

  def _read(self, step: int, abstract: State, meta: Meta) -> State:
    """The state of a checkpoint, read in READS parts of about the same number of bytes."""
    leaves, tree = jax.tree.flatten(_parts_of(abstract))
    groups = _groups(leaves)
    for group in np.unique(groups):
      wanted = [leaf if n == group else ocp.PLACEHOLDER for leaf, n in zip(leaves, groups)]
      parts = tree.unflatten(wanted)
      read = self._orbax.load_checkpointables(step, parts)
      jax.block_until_ready(read)
      for i, leaf in enumerate(tree.flatten_up_to(read)):
        if groups[i] == group:
          leaves[i] = leaf
      _trim()
    parts = tree.unflatten(leaves)
    _check(parts, meta)
    return jax.block_until_ready(_state_of(parts))


def _groups(leaves: Iterable[jax.ShapeDtypeStruct]) -> np.ndarray:
  """The number, from 0, of the part of a checkpoint that each leaf is read in."""
  ends = np.cumsum([leaf.size * leaf.dtype.itemsize for leaf in leaves])
  return (READS * ends - 1) // ends[-1]
