"""Files of checkpoints and datasets that are damaged: what is read is right, or refused with a message."""
import hashlib
import json
import pathlib
import random
import shutil

from tests.faults import forks, runs

BATCH = 20  # damaged copies that one process looks at
DAMAGES = ('flip', 'flips', 'truncate', 'delete', 'zeros', 'noise', 'append', 'swap')


def damage(rng, folder):
  """Damages one file of a folder, in one of many ways; returns 'how: which file', or None if it stayed the same."""
  files = sorted(p for p in folder.rglob('*') if p.is_file())
  file, how = rng.choice(files), rng.choice(DAMAGES)
  before = file.read_bytes()
  content, n = bytearray(before), len(before)
  if how == 'delete':
    file.unlink()
    return f'{how}: {file.relative_to(folder)}'
  if how == 'swap':
    content = bytearray(rng.choice(files).read_bytes())
  elif how == 'append' or not n:
    content += rng.randbytes(rng.randint(1, 100))
  elif how == 'truncate':
    del content[rng.randrange(n):]
  else:
    for _ in range(8 if how == 'flips' else 1):
      at = rng.randrange(n)
      if how.startswith('flip'):
        content[at] ^= 1 << rng.randrange(8)
      else:
        end = min(n, at + rng.randint(1, 4096))
        content[at:end] = bytes(end - at) if how == 'zeros' else rng.randbytes(end - at)
  if content == before:
    return None
  file.write_bytes(content)
  return f'{how}: {file.relative_to(folder)}'


def damaged_files(arm, count, what, seed=0):
  """{damaged, refused, unharmed, fell_back, wrong, crashed, notes} of `count` damaged copies of `what`.

  what: 'checkpoint' or 'dataset'. unharmed: everything read was right; fell_back: the checkpoint before was read, and
  it was right; refused: a Failure with a message; wrong: a value that was not saved; crashed: anything else.
  """
  kind, _, _ = arm
  original = kind.folder / ('straight/checkpoints' if what == 'checkpoint' else 'prepared')
  reference = _in_child(kind, lambda: READERS[what](kind, original.parent if what == 'checkpoint' else original))
  if 'value' not in reference:
    raise AssertionError(f'the whole {what} cannot be read: {reference}')
  steps = max(runs.committed(kind.folder / 'straight')) if what == 'checkpoint' else None
  rng, done = random.Random(seed), 0
  found = dict(damaged=0, refused=0, unharmed=0, fell_back=0, wrong=0, crashed=0, notes=[])
  while done < count:
    copies = []
    for i in range(min(BATCH, count - done)):
      copy, how = kind.folder / f'damaged-{what}-{i}', None
      while how is None:
        shutil.rmtree(copy, ignore_errors=True)
        inside = copy / 'checkpoints' if what == 'checkpoint' else copy
        shutil.copytree(original, inside)
        how = damage(rng, inside / str(steps) if what == 'checkpoint' else inside)
      copies.append((copy, how))
    outcomes = _read_all(kind, what, [copy for copy, _ in copies])
    for (copy, how), outcome in zip(copies, outcomes):
      committed = what != 'checkpoint' or steps in runs.committed(copy)
      verdict = _judge(outcome, reference, committed)
      found[verdict] += 1
      if verdict in ('wrong', 'crashed'):
        found['notes'].append(f'{how}: {str(outcome)[:300]}')
      shutil.rmtree(copy)
    done += len(copies)
    found['damaged'] = done
  return found


def _judge(outcome, reference, committed):
  if 'refused' in outcome:
    return 'refused' if len(outcome['refused']) > 20 else 'crashed'
  if outcome.get('value') == reference['value']:
    return 'unharmed'
  if 'value' in outcome and outcome['value'] in reference['before']:
    # One that was not finished is no checkpoint, and nothing is said of it; damage must be told.
    return 'fell_back' if outcome['said'] or not committed else 'wrong'
  return 'wrong' if 'value' in outcome else 'crashed'


def _read_all(kind, what, copies):
  """An outcome for each copy; where a process dies over one, the next begins behind it."""
  outcomes = []
  while len(outcomes) < len(copies):
    log = kind.folder / 'outcomes'
    log.unlink(missing_ok=True)

    rest = copies[len(outcomes):]

    def work(rest=rest, log=log):
      with open(log, 'w', buffering=1) as f:
        for copy in rest:
          f.write(json.dumps(READERS[what](kind, copy)) + '\n')
    child = forks.Child(work, kind.folder / 'log.damage')
    try:
      code = child.wait(600)
    except TimeoutError:
      code = 'a hang'
    lines = log.read_text().splitlines() if log.exists() else []
    outcomes += [json.loads(line) for line in lines]
    if code:
      tail = (kind.folder / 'log.damage').read_text(errors='replace')[-300:]
      outcomes.append(dict(crashed=f'{code}: {tail}'))
  return outcomes[:len(copies)]


def _in_child(kind, work):
  log = kind.folder / 'outcome'
  child = forks.Child(lambda: log.write_text(json.dumps(work())), kind.folder / 'log.damage')
  if child.wait(300):
    raise AssertionError((kind.folder / 'log.damage').read_text())
  return json.loads(log.read_text())


def _guarded(read):
  """What `read()` returns, or how it failed."""
  from t5like.errors import Failure
  try:
    return read()
  except Failure as e:
    return dict(refused=str(e))
  except Exception as e:
    return dict(crashed=f'{type(e).__name__}: {e}')


def read_checkpoint(kind, workdir):
  """Digest of all arrays and of the meta that a run would go on from; `before`: digests of older checkpoints."""
  import jax
  import numpy as np

  from t5like import config as config_lib, sharding
  from t5like.model import models
  from t5like.storage.checkpoint import Checkpoints
  from t5like.training import build, step as step_lib
  from t5like.vocabulary import loading as vocabulary_lib
  flags = {a.partition('=')[0]: a.partition('=')[2] for a in kind.argv('unused')}
  config = config_lib.load(flags['--config'], [a[len('--config.'):] for a in kind.argv('unused')
                                               if a.startswith('--config.')])

  def digest(state, meta):
    whole = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for x in jax.tree.leaves(state):
      whole.update(np.asarray(x).tobytes())
    return whole.hexdigest()

  def read():
    vocabulary = vocabulary_lib.load(config.vocabulary, kind.folder / 'straight/vocabulary')
    sized, said = models.with_vocabulary(config, vocabulary), []
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh), Checkpoints(workdir) as checkpoints:
      model, _ = models.build_model(sized)
      tx = build.build_step(sized, model, runs.STEPS, mesh)[0]
      abstract = sharding.abstract(lambda: step_lib.init_state(model, tx, config.seed), mesh)
      found = checkpoints.restore(abstract, said.append)
      before = []
      if pathlib.Path(workdir).name == 'straight':
        before = [digest(*checkpoints.restore(abstract, counts=lambda s, _, step=step: s == step))
                  for step in checkpoints.steps[:-1]]
    return dict(value=digest(*found) if found else None, said=said, before=before)
  return _guarded(read)


def read_dataset(kind, folder):
  """Digest of every row of both splits and of the vocabulary."""
  import numpy as np

  from t5like.prepared import store as store_lib

  def read():
    folders = [p.parent for p in pathlib.Path(folder).rglob('*') if p.name == 'manifest.json'] or [
        p for p in pathlib.Path(folder).iterdir()]
    store, whole = store_lib.open_store(folders[0]), hashlib.sha256()
    whole.update(store.vocabulary.fingerprint.encode() + store.fingerprint.encode())
    for split in store.splits:
      windows = store.windows(split, 64, tail=True)
      for i in range(len(windows)):
        whole.update(np.asarray(windows[i]).tobytes())
      examples = store.examples(split)
      for i in range(len(examples)):
        for part in examples[i]:
          whole.update(np.asarray(part).tobytes())
    return dict(value=whole.hexdigest(), said=[], before=[])
  return _guarded(read)


READERS = dict(checkpoint=read_checkpoint, dataset=read_dataset)
