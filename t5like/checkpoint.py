"""Checkpoints: what is in one, when it counts, and where a run starts from.

A run starts from, in this order:
  1. the newest checkpoint in workdir/checkpoints that can be read;
  2. fresh parameters.

A checkpoint of step n holds `params`, `opt_state` and `train` (step and guard counters), each readable
alone, and `meta`: JSON with the config, the data's fingerprint, `tokens` and `examples_seen`. It
exists once Orbax has written its commit file; `loop.py` saves only steps known to be finite.
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

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from t5like import checksums, pagecache, plain_json, schema, sharding
from t5like.errors import CheckpointError
from t5like.schema import List, Maybe, Object, Text, Whole

_KEEP = ocp.training.preservation_policies
COMMITTED = 'commit_success.txt'  # Orbax's, written last
# What a checkpoint says of itself, beyond what is needed to read its arrays.
META = Object(dict(
    step=Whole(), tokens=Whole(), examples_seen=Whole(), rewinds=Whole(), skipped=List(List(Whole(), 2, 2)),
    validation=Maybe(Object(dict(step=Whole()), ('step',))), stopper=Object(dict(waited=Whole()), ('waited',)),
    config=Text(), data=Text(), vocabulary=Text(), checksums=Object()), ('checksums',))
REMINDER = 300.0  # seconds between warnings that saves still fail


logging.getLogger('absl').addFilter(lambda record: 'Skipping merge of OCDBT' not in record.getMessage())


def _context(directory):
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


def _translated(method):
  """Orbax's errors (of this call or of a save that failed behind it) as one CheckpointError."""
  @functools.wraps(method)
  def wrapped(self, *args, **kwargs):
    try:
      return method(self, *args, **kwargs)
    except CheckpointError:
      raise
    except Exception as e:
      sharding.blame_peers(e)
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


def _sealed(meta):
  """`meta` as it comes back from JSON, with a digest of itself."""
  rest = json.loads(plain_json.dumps({key: value for key, value in meta.items() if key != 'digest'}))
  return dict(rest, digest=_digest(rest))


def _digest(meta):
  """Of all but the digest itself. Of NaN too, which checkpoints of older versions may hold."""
  rest = {key: value for key, value in meta.items() if key != 'digest'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _trim():
  """Gives memory back that was freed: glibc keeps it, for each thread that reads a part of its own."""
  with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).malloc_trim(0)


class _Best:
  """Orbax's policy of keeping the n steps with the least of `nlls`, {step: nats}.

  Its own would write each number to a file without which, or if it is damaged, no checkpoint could be read.
  """

  def __init__(self, nlls, n):
    self.nlls, self.n = nlls, n

  def should_preserve(self, checkpoints, *, context):
    known = sorted((self.nlls[c.step], c.step) for c in checkpoints if c.step in self.nlls)
    best = [step for _, step in known[:self.n]]
    return [c.step in best for c in checkpoints]


class Checkpoints:
  """The checkpoints of one run. Use as a context manager: leaving waits for saves under way.

  Args:
    keep, keep_every, keep_best: see config.checkpoint.
    say: called with lines for people.
    attempts, patience: a save that fails costs nothing but itself. It is reported, what it left on the disk is taken
      away, and the next one is tried; CheckpointError when `attempts` in a row have failed, over at least `patience`
      seconds.
    tidy: take away what saves that were killed have left; only for the one who trains there, for to others a save
      under way looks the same.
  """

  def __init__(self, workdir, keep=2, keep_every=0, keep_best=0, say=print, attempts=1, patience=0.0, tidy=False):
    self.directory, self.say, self.tidy = epath.Path(workdir).absolute() / 'checkpoints', say, tidy
    self.attempts, self.patience, self.failures, self.failing_since, self.said = attempts, patience, 0, None, -math.inf
    self.error = ''  # why the newest save failed
    self.under_way = None  # the step that is being saved
    self.response = None  # Orbax's, of that save
    self.dropping = None
    self.policies, self.nlls = [_KEEP.LatestN(keep)], {}
    if keep_every:
      self.policies.append(_KEEP.EveryNSteps(keep_every))
    if keep_best:
      self.policies.append(_Best(self.nlls, keep_best))
    self._open()
    for step in self.steps if keep_best else ():
      with contextlib.suppress(CheckpointError):  # a damaged one is not the best
        self._note(self.meta(step))

  def _open(self):
    try:
      if self.tidy and jax.process_index() == 0:
        self._tidy()
      self._orbax = ocp.training.Checkpointer(
          self.directory, context=_context(self.directory), cleanup_tmp_directories=False,
          preservation_policy=_KEEP.AnyPreservationPolicy(self.policies))
    except OSError as e:
      raise CheckpointError(f'cannot write checkpoints to {self.directory}: {_cause(e)}. Give another '
                            '--workdir.') from e

  def _tidy(self):
    """Takes away what saves that failed or were killed have left: it would keep a full disk full."""
    for folder in self.directory.iterdir() if self.directory.exists() else ():
      if folder.is_dir() and not (folder / COMMITTED).exists():
        folder.rmtree()

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    if kind is None:
      self.close()
      return
    with contextlib.suppress(Exception):  # an error is on its way already
      self._orbax.close()
    self._ended()

  @property
  def steps(self):
    """Steps of the committed checkpoints, oldest first."""
    return sorted(c.step for c in self._orbax.checkpoints)

  def save(self, step, state, meta):
    """Starts saving, once the save before is done; blocks only while arrays are copied to the host.

    `meta` must be JSON, `validation` in it what is known of {step, nll}. Returns whether it was started.
    """
    self.wait()
    try:
      self._check_space(state)
      parts = dict(params=state['params'], opt_state=state['opt_state'],
                   train=dict(step=state['step'], guard=state['guard']))
      parts['meta'] = _sealed(dict(meta, checksums=checksums.of_tree(parts)))
      # A step that exists already is one that could not be read, or that a run has gone back behind.
      self._note(parts['meta'])
      self._start(step, parts)
    except CheckpointError as error:
      self._failed(error)
      return False
    return True

  @_translated
  def _start(self, step, parts):
    self.under_way = step
    self.dropping = pagecache.Dropping(self.directory / str(step), self.directory / str(step) / COMMITTED)
    self.response = self._orbax.save_checkpointables_async(step, parts, force=True, overwrite=step in self.steps)

  def _note(self, meta):
    validation = meta.get('validation')
    if validation and validation['step'] == meta['step']:
      nll = plain_json.number(validation['nll'])
      self.nlls[meta['step']] = math.inf if math.isnan(nll) else nll  # the worst there is

  def _check_space(self, state):
    """CheckpointError if the disk is seen to be too full."""
    if '://' in str(self.directory):
      return
    size, free = sum(x.nbytes for x in jax.tree.leaves(state)), math.inf
    if jax.process_index() == 0:
      with contextlib.suppress(OSError):  # a folder that has gone is found when it is written to
        free = shutil.disk_usage(self.directory).free
    if jax.process_count() > 1:  # all go the same way
      free = float(multihost_utils.broadcast_one_to_all(np.float32(free)))
    if free < size:
      raise CheckpointError(f'{self.directory} has {free / 1e9:.3g} GB free, and a checkpoint takes {size / 1e9:.3g} '
                            'GB. Make room there, or set checkpoint.keep and checkpoint.keep_every lower.')

  def _failed(self, error):
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
    last = f'The newest checkpoint is of step {self.steps[-1]:,}.' if self.steps else 'There is no checkpoint yet.'
    if self.failures >= self.attempts and now - self.failing_since >= self.patience:
      raise CheckpointError(f'{error} {last} (Saves that failed in a row: {self.failures}.)') from error
    if now - self.said >= REMINDER:
      self.said = now
      self.say(f'WARNING: a checkpoint could not be saved, training continues, the next save tries again. {error} '
               f'{last}')

  def wait(self):
    """Until the save under way has ended; whether it is there. One that failed is reported, as `save` does."""
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
    self.failures, self.failing_since, self.said = 0, None, -math.inf
    return True

  def _ended(self):
    self.under_way = None
    self._release()
    if self.dropping:
      self.dropping.close()

  def _release(self):
    """Ends the thread of Orbax's response and closes its descriptors: they stay until somebody asks for the result."""
    response, self.response = self.response, None
    if response:
      with contextlib.suppress(Exception):  # `_wait` raises it too
        response.result()

  @_translated
  def _wait(self):
    self._release()
    self._orbax.wait()
    if self.under_way not in self.steps or not (self.directory / str(self.under_way)).exists():
      raise CheckpointError(f'{self.directory}/{self.under_way} is not there after it was saved: was the folder taken '
                            'away?')

  @_translated
  def close(self):
    self._orbax.close()
    self._ended()

  @_translated
  def meta(self, step):
    return self._intact(self._orbax.load_checkpointables(step, dict(meta=None))['meta'])

  def _intact(self, meta):
    if not isinstance(meta, dict) or meta.get('digest') != _digest(meta):
      raise CheckpointError('meta: the values read are not those that were saved (their digest differs).')
    try:
      META.check(meta, 'meta')
    except schema.Invalid as error:
      raise CheckpointError(f'{error}.') from error
    return meta

  @_translated
  def params(self, step, abstract):
    """Parameters alone, in the shapes, dtypes and shardings of `abstract`."""
    found = self._orbax.load_checkpointables(step, dict(params=abstract, meta=None))
    _check(dict(params=found['params']), self._intact(found['meta']))
    return found['params']

  def restore(self, abstract, say=print, counts=lambda step, meta: True):
    """(state, meta) of the newest checkpoint that can be read, or None when there is none.

    `abstract` is the state's shapes and shardings, of any mesh; `counts`: whether a checkpoint is to be considered.
    A damaged one is reported and the one before it taken; CheckpointError when none is left.
    """
    damaged = []
    for step in reversed(self.steps):
      try:
        meta = self.meta(step)
        if counts(step, meta):
          return self._read(step, abstract, meta), meta
      except Exception as e:
        sharding.blame_peers(e)
        damaged.append(f'step {step}: {_cause(e)}')
        say(f'The checkpoint of {damaged[-1]} Trying the one before it.')
    if damaged:
      raise CheckpointError(f'no checkpoint in {self.directory} can be read ({"; ".join(damaged)}). '
                            'Nothing was changed there; start again with another --workdir.')
    return None

  def _read(self, step, abstract, meta):
    parts = dict(params=abstract['params'], opt_state=abstract['opt_state'],
                 train=dict(step=abstract['step'], guard=abstract['guard']))
    # A tenth at a time: read all at once, the host holds much of it twice.
    leaves, tree = jax.tree.flatten(parts)
    group = np.cumsum([x.size * x.dtype.itemsize for x in leaves])
    group = (10 * group - 1) // group[-1]
    for n in np.unique(group):
      wanted = tree.unflatten([x if n == g else ocp.PLACEHOLDER for x, g in zip(leaves, group)])
      found = jax.block_until_ready(self._orbax.load_checkpointables(step, wanted))
      leaves = [y if n == g else x for x, y, g in zip(leaves, tree.flatten_up_to(found), group)]
      _trim()
    found = tree.unflatten(leaves)
    _check(found, meta)
    return jax.block_until_ready(dict(params=found['params'], opt_state=found['opt_state'], **found['train']))
