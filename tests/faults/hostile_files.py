"""JSON files of runs, datasets, tasks and prompts that are damaged or hostile, read as main.py reads them."""
import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import time
import traceback

from tests.faults import forks, hostile_json
from tests.faults.hostile_folders import CODES, MEGABYTES, SECONDS, memory

BATCH = 40  # files that one process looks at
LIMIT = 120  # seconds for a batch
DIGEST = ('manifest.json',)  # whose digest is made right again, so that more than the digest is looked at


def prepared(folder):
  """A small dataset, prepared, an unfinished one, and one of TFDS's kind; to be called in a child."""
  from t5like.prepared import prepare
  from tests import tiny
  config = tiny.config(folder)
  target = prepare.prepare(config, lambda line: None)
  left = folder / 'unfinished' / pathlib.Path(target).name
  shutil.copytree(target, left)
  manifest = json.loads((left / 'manifest.json').read_text())
  (left / 'manifest.json').unlink()
  for i, mark in enumerate(manifest['parts']):
    (left / f'part-{i:05d}.json').write_text(json.dumps(mark))
  parts = [dict(source='train', start=0, stop=1, last=None, files={})]
  (left / 'plan.json').write_text(json.dumps(dict(format=4, inputs=manifest['inputs'], parts=parts)))


def written(folder):
  """Files of a run, tasks and prompts, as t5like writes them."""
  from t5like.storage import workdir
  from tests import tiny
  run = folder / 'run'
  config = tiny.config(folder)
  workdir.write_config(run, config)
  workdir.write_result(run, config, reason='tokens', step=6, tokens=3072, validation=dict(nll=1.5, accuracy=0.5))
  workdir.write_json(run / 'rewinds.json', [dict(from_step=5, to_step=3, rows=[48, 80], why='bad')])
  workdir.write_json(run / 'trackers.json', dict(wandb='abc', mlflow='def'))
  entry = dict(step=6, shots=-1, limit=0, tasks=dict(brackets=dict(accuracy=0.5)))
  workdir.write_json(run / 'evaluation.json', dict(entry, results=[entry]))
  workdir.write_json(run / 'lease.json', dict(id='a' * 32, host='h', pid=1, machine='m', began=1, beats=3))
  numbers = dict(loss=2.5, nll=2.5, accuracy=0.1, tokens_per_second=1e3, mfu=0.1, learning_rate=1e-3, grad_norm=1.0,
                 update_norm=0.1, data_wait=0.0, bad_steps=0)
  lines = dict(
      metrics=[dict(numbers, step=s, time=1.5e9 + s, tokens=512 * s, examples_seen=16 * s) for s in range(1, 7)]
      + [{'step': 6, 'time': 1.5e9, 'validation/nll': 2.0, 'validation/accuracy': 0.5, 'tasks/a': 0.5}],
      samples=[dict(step=6, prompt='the', text=' end')],
      ledger=[dict(attempt=1, time=1.5e9, step=0, seconds=dict(init=1.0), event='start', began=1.5e9),
              dict(attempt=1, time=1.5e9 + 9, step=6, seconds=dict(step=5.0, data=0.5), event='end', why='done')])
  for name, values in lines.items():
    (run / f'{name}.jsonl').write_text(''.join(json.dumps(value) + '\n' for value in values))
  (folder / 'task.json').write_text(json.dumps(dict(
      kind='choice', before='{question}', answer=' {choice}', items='items.jsonl', choices='choices', label='answer',
      shots=1, reserved=1, metrics=['f1'], until=['\n'], tokens=8, about='x')))
  items = [dict(question=f'q{i}', choices=['a', 'b'], answer=i % 2) for i in range(4)]
  (folder / 'items.jsonl').write_text(''.join(json.dumps(item) + '\n' for item in items))
  prompts = [dict(prompt='the'), 'a', dict(text='b', more=[1])]
  (folder / 'prompts.jsonl').write_text(''.join(json.dumps(prompt) + '\n' for prompt in prompts))
  (folder / 'answers.jsonl').write_text(json.dumps(dict(prompt='the', answer=' end')) + '\n')


# --- What main.py does with them ------------------------------------------------------------------


def _dataset(folder):
  return next(path.parent for path in folder.glob('prepared/*/vocabulary'))


def read_run(folder):
  from t5like.evals import results
  from t5like.observe import report, trackers
  from t5like.storage import rewinds, workdir
  from tests import tiny
  run = folder / 'run'
  config = workdir.read_config(run)
  workdir.check_config(run, tiny.config(folder))
  done = workdir.read_result(run, config)
  f'{done["step"]:,} {done["validation"]["nll"]:.4f}' if done else ''
  rewinds.happened(rewinds.read_rewinds(run))(5, dict(rewinds=0))
  trackers._known_run(run, 'wandb')
  results.add(run / 'evaluation.json', dict(step=7, shots=0, limit=0), {'x': {'accuracy': 1.0}})
  with contextlib.redirect_stdout(io.StringIO()):
    _, account = report.write(run)
    report.show(account)


def read_metrics(folder):
  from t5like.observe import metrics
  from t5like.observe.ledger import Ledger
  run = folder / 'run'
  files = metrics.Files(run, 4)
  files.write(5, dict(loss=1.0))
  files.sample(5, 'the', 'end')
  files.close()
  ledger = Ledger(run)
  ledger.start(0)
  ledger.flush(5, event='end', why='done')


def read_lease(folder):
  from t5like.storage import lease
  lease.PATIENCE = 0.0
  held = lease.Lease(folder / 'run', lambda line: None)
  held.check()
  held.close()


def read_task(folder):
  from t5like.config import task_files
  from t5like.evals import items
  items.questions(task_files.find(str(folder / 'task.json')))


def read_prompts(folder):
  from t5like.decoding import prompt_files
  prompt_files.check(folder / 'prompts.jsonl', folder / 'answers.jsonl')


def read_dataset(folder):
  from t5like.prepared import store
  data = store.open_store(_dataset(folder))
  for split in data.splits:
    windows, examples = data.windows(split, 32), data.examples(split)
    data.vocabulary.decode(windows[len(windows) - 1])
    examples[len(examples) - 1]
    data.names(split, 0, 10)


def read_unfinished(folder):
  from t5like.prepared import prepare
  from tests import tiny
  config = tiny.config(folder, data=dict(directory=str(folder / 'unfinished')))
  prepare.prepare(config, lambda line: None)


def read_lines(folder):
  from t5like.prepared import examples
  from t5like.sources import registry
  from tests import tiny
  config = tiny.config(folder)
  config.unlock()
  config.data.source = f'jsonl:{folder}/items.jsonl'
  config.data.update(field='question', max_bad_records=1)
  source = registry.open_source(config)
  count = examples.new_count()
  part = dict(start=0, stop=source.num_items, last=None)
  for texts, _ in examples.examples(config, source, part, count):
    examples.split_example(texts, '', config)


RUN = ('config.json', 'result.json', 'rewinds.json', 'trackers.json', 'evaluation.json', 'metrics.jsonl',
       'samples.jsonl', 'ledger.jsonl')
# {what main.py does: (function, files that it reads)}
READERS = dict(
    run=(read_run, [f'run/{name}' for name in RUN]), metrics=(read_metrics, ['run/metrics.jsonl', 'run/ledger.jsonl',
                                                                            'run/samples.jsonl']),
    lease=(read_lease, ['run/lease.json']), task=(read_task, ['task.json', 'items.jsonl']),
    prompts=(read_prompts, ['prompts.jsonl', 'answers.jsonl']), lines=(read_lines, ['items.jsonl']),
    dataset=(read_dataset, ['prepared/*/manifest.json', 'prepared/*/vocabulary']),
    unfinished=(read_unfinished, ['unfinished/*/plan.json', 'unfinished/*/part-*.json', 'unfinished/*/vocabulary']))


def hostile_files(folder, count, seed=0):
  """{files, refused, read, crashed, slow, large, notes, most_seconds, most_megabytes}, as hostile_folders counts them.

  read: taken as it is, or without the lines that are damaged, as what could be meant.
  """
  folder = pathlib.Path(folder)
  original = folder / 'original'
  original.mkdir(parents=True)

  def make():
    prepared(original)
    written(original)
    for name, (read, _) in READERS.items():
      shutil.copytree(original, folder / 'whole')
      _move_config(folder / 'whole', original)
      outcome = _guarded(lambda read=read: read(folder / 'whole'))
      if 'read' not in outcome:
        raise AssertionError(f'{name} as it is: {outcome}')
      shutil.rmtree(folder / 'whole')
  if forks.Child(make, folder / 'log').wait(300):
    raise AssertionError((folder / 'log').read_text()[-3000:])
  rng = random.Random(seed)
  found = dict(files=0, refused=0, read=0, crashed=0, slow=0, large=0, notes=[], most_seconds=0.0, most_megabytes=0)
  while found['files'] < count:
    cases = [(rng.choice(sorted(READERS)), rng.getrandbits(60)) for _ in range(min(BATCH, count - found['files']))]
    outcomes = forks.one_by_one(folder, cases, lambda case: look_at(folder / 'case', original, *case),
                                lambda case, why: dict(crashed=why), LIMIT)
    for case, outcome in zip(cases, outcomes):
      _count(found, case, outcome)
  return found


def _count(found, case, outcome):
  found['files'] += 1
  seconds, megabytes = outcome.get('seconds', 0.0), outcome.get('megabytes', 0)
  kind = next(kind for kind in ('crashed', 'refused', 'read') if kind in outcome)
  found[kind] += 1
  found['slow'] += seconds > SECONDS
  found['large'] += megabytes > MEGABYTES
  found['most_seconds'] = max(found['most_seconds'], seconds)
  found['most_megabytes'] = max(found['most_megabytes'], megabytes)
  if kind == 'crashed' or seconds > SECONDS or megabytes > MEGABYTES:
    found['notes'].append(f'{case[0]}, {outcome.get("what")}: {kind}, {seconds:.1f} s, {megabytes} MB: {outcome[kind]}')


def look_at(copy, original, reader, seed):
  """What becomes of one file that is damaged, with the seconds of a processor and the memory that it took."""
  rng = random.Random(seed)
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(original, copy)
  _move_config(copy, original)
  read, names = READERS[reader]
  path = rng.choice(sorted(path for name in names for path in copy.glob(name)))
  damaged = hostile_json.mutated_lines if path.suffix == '.jsonl' else hostile_json.mutated
  what, content = damaged(rng, path.read_bytes())
  if path.name in DIGEST and rng.random() < 0.8:
    content = _sealed(content)
  path.write_bytes(content)
  before = memory(reset=True)
  began = time.process_time()
  outcome = _guarded(lambda: read(copy))
  return dict(outcome, what=f'{path.name}: {what}', seconds=time.process_time() - began,
              megabytes=max(0, memory() - before))


def _move_config(copy, original):
  """The copy's run looks for its data in the copy."""
  path = copy / 'run' / 'config.json'
  if path.exists():
    path.write_text(path.read_text().replace(str(original), str(copy)))


def _sealed(content):
  from t5like.prepared import manifests
  try:
    return json.dumps(manifests.sealed(json.loads(content))).encode()
  except (ValueError, AttributeError, RecursionError):
    return content


def _guarded(read):
  from t5like.errors import Failure
  try:
    read()
    return dict(read=True)
  except Failure as error:
    text = str(error)
    fine = error.exit_code in CODES and 20 < len(text) < 4000 and text.count('\n') < 100
    return dict(refused=text[:300]) if fine else dict(crashed=f'exit code {error.exit_code}: {text[:500]}')
  except BaseException as error:  # a panic of Rust is no Exception
    where = traceback.extract_tb(error.__traceback__)[-1]
    return dict(crashed=f'{type(error).__name__} in {os.path.basename(where.filename)}:{where.lineno}: {error}'[:500])
