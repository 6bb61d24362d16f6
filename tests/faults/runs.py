"""Small runs to be disturbed, and what an undisturbed one of each gives."""
import dataclasses
import json
import pathlib
import random
import shutil
import time

from tests.faults import forks

STEPS, EVERY = 30, 3  # steps of a run, and between checkpoints
COMMON = '''batch_size=8 stop.tokens={tokens} log.every=1 log.trackers=() evaluate.every=15 evaluate.batches=1
checkpoint.every={every} checkpoint.keep=2 schedule.warmup_steps=4 optimizer.learning_rate=0.003 model.dropout=0.1
guard.compare_every=7 sample.prompts=() vocabulary.name=bytes data.validation_fraction=0.1 model.dtype=float32
data.seq_len=32'''
KINDS = dict(
    decoder='model.vocab_size=384 vocabulary.sentinels=0 model.d_model=32 model.num_layers=2 model.num_heads=4 '
            'model.num_kv_heads=2 model.d_ff=64',
    encdec='model.name=encoder_decoder model.vocab_size=384 vocabulary.sentinels=30 objective.name=span_corruption '
           'data.target_len=24 model.d_model=32 '
           'model.num_layers=2 model.num_heads=4 model.num_kv_heads=4 model.d_ff=64')


@dataclasses.dataclass
class Kind:
  """A run that can be started again and again: its folder, command line, processes and devices of each."""
  name: str
  folder: pathlib.Path
  processes: int = 1
  devices: int = 1

  @property
  def source(self):
    return self.folder / 'text.jsonl'

  def argv(self, workdir, prepared=None):
    architecture = self.name.split('-')[0]
    settings = f'{COMMON.format(tokens=STEPS * 8 * 32, every=EVERY)} {KINDS[architecture]}'.split()
    config = self.folder / 'config.py'
    if not config.exists():
      config.write_text('from t5like.config import base\n\n\ndef get_config():\n  return base()\n')
    return [f'--config={config}', f'--workdir={workdir}', f'--config.data.source=jsonl:{self.source}',
            f'--config.data.directory={prepared or self.folder / "prepared"}', '--config.mesh.fsdp=-1',
            f'--config.compile.cache={self.folder / "cache"}', *(f'--config.{s}' for s in settings)]

  def start(self, workdir, prepared=None):
    return forks.start(self.argv(workdir, prepared), self.folder / 'log', self.processes, self.devices)

  def said(self):
    return ''.join(p.read_text(errors='replace') for p in sorted(self.folder.glob('log*')))

  def facts(self, workdir):
    """What must be the same however often a run was interrupted: every loss and norm, every array's checksum."""
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    keys = ('step', 'loss', 'nll', 'grad_norm', 'update_norm', 'tokens', 'examples_seen', 'validation/nll')
    newest = workdir / 'checkpoints' / str(max(committed(workdir)))
    meta = json.loads(next((newest / 'meta').rglob('*.json')).read_text()) if (newest / 'meta').is_dir() else None
    return dict(lines=[{k: line[k] for k in keys if k in line} for line in lines], checksums=meta['checksums'],
                examples_seen=meta['examples_seen'])


def kind(name, folder, processes=1, devices=1):
  """A Kind with its text, prepared data, warm compile cache, the facts of an undisturbed run and its seconds."""
  folder = pathlib.Path(folder) / name
  folder.mkdir(parents=True)
  made, rng = Kind(name, folder, processes, devices), random.Random(0)
  words = 'the a of to in is it for on as with that this from by are be was not have'.split()
  with open(made.source, 'w') as f:
    for _ in range(150):
      f.write(json.dumps(dict(text=' '.join(rng.choices(words, k=rng.randint(5, 60))))) + '\n')
  if processes > 1:
    run_through([forks.Child(lambda: forks.run_main('prepare', *made.argv(folder / 'none')), folder / 'log')], made)
  for _ in ('warm', 'straight'):
    shutil.rmtree(folder / 'straight', ignore_errors=True)
    before = time.monotonic()
    run_through(made.start(folder / 'straight'), made)
    seconds = time.monotonic() - before
  return made, made.facts(folder / 'straight'), seconds


def run_through(children, of):
  codes = [child.wait(300) for child in children]
  if any(codes):
    raise AssertionError(f'{of.name} ended with {codes}:\n{of.said()[-4000:]}')


def committed(workdir):
  """Steps of the checkpoints that count."""
  return [int(p.name) for p in (workdir / 'checkpoints').glob('*') if (p / 'commit_success.txt').exists()]
