"""Random mistakes in configs: refused with a paragraph, or they run; no traceback, no hang, ever."""
import random
import re
import time

from tests.faults import forks

AT_ONCE = 2
LIMIT = 240  # seconds for a run
# Values that users may give, by the type of the key; whole numbers are small, so that what is accepted runs.
NUMBERS = ['-1', '0', '1', '2', '3', '5', '7', '8', '16', '24', '48', '64', '100']
VALUES = {
    int: [*NUMBERS, *NUMBERS, 'x', '', '1.5', 'nan', '1e400', '3K3', '(1,)', 'None', 'true'],
    float: ['-1', '0', '0.1', '0.5', '1', '2', '1e-3', '1e30', 'nan', 'inf', 'x', '', '1,5', '(1,)', 'true'],
    bool: ['true', 'false', 'maybe', '1', '', 'None'],
    str: ['', 'x', ' ', '/no/such/file', 'None', '{text}', 'text:/no/such/*.txt', '0:0', '5:3', 'é\u2603'],
    tuple: ['()', '(1,)', '("x",)', 'x', '(', '("",)', '["a", "b"]', '1'],
}
# Left alone: what would make a run longer, or fetch something.
FIXED = re.compile(r'^(data\.(source|directory|remote|max_documents)|compile\.|watchdog\.|stop\.(tokens|wall_time)|'
                   r'workdir|init_from|log\.trackers|schedule\.decay|evaluate\.tasks$)')


def mistakes(rng):
  """1 to 3 overrides, some of them wrong, [text]."""
  from t5like.config import rules
  keys = [key for key in rules.DEFAULTS if not FIXED.match(key)]
  found = []
  for _ in range(rng.choice([1, 1, 2, 3])):
    key = rng.choice(keys)
    kind = type(rules.DEFAULTS[key])
    choices = list(rules.CHOICES.get(key, ()))
    if choices and rng.random() < 0.6:
      value = rng.choice(choices)
      if rng.random() < 0.3:
        value = _misspelt(rng, value)
    else:
      value = rng.choice(VALUES.get(kind, VALUES[str]))
    if rng.random() < 0.1:
      key = _misspelt(rng, key)
    found.append(f'{key}={value}')
  return found


def _misspelt(rng, word):
  at = rng.randrange(len(word))
  return rng.choice([word[:at] + word[at + 1:], word[:at] + rng.choice('abcxyz_') + word[at:], word + 's'])


def wrong_configs(arms, count, seed=0):
  """{configs, refused_at_once, refused_later, ran, failed, notes} of `count` random configs.

  refused_at_once: exit code 2 with a message and before JAX was started; refused_later: a Failure's exit code and
  message, for what only the data or the devices show; failed: a traceback, another exit code, or no end.
  """
  rng = random.Random(seed)
  todo = [(i, arms[i % len(arms)][0], mistakes(rng)) for i in range(count)]
  found = dict(configs=count, refused_at_once=0, refused_later=0, ran=0, failed=0, notes=[])
  running = []
  while todo or running:
    while todo and len(running) < AT_ONCE:
      i, kind, given = todo.pop(0)
      argv = [*kind.argv(kind.folder / f'wrong-{i}'), *(f'--config.{item}' for item in given)]
      child = forks.Child(lambda argv=argv: _run(argv), kind.folder / f'wrong-{i}.log')
      running.append((child, given, time.monotonic()))
    time.sleep(0.02)
    for entry in list(running):
      child, given, since = entry
      if child.poll() is None and time.monotonic() - since < LIMIT:
        continue
      hung = child.poll() is None
      child.kill()
      verdict, said = _judge(child, hung)
      found[verdict] += 1
      if verdict == 'failed':
        found['notes'].append(f'{" ".join(given)}: {said}')
      running.remove(entry)
  return found


def _run(argv):
  from t5like import sharding
  real = sharding.start_processes

  def start(*args):
    print('JAX STARTS', flush=True)
    real(*args)
  sharding.start_processes = start
  forks.run_main(*argv)


def _judge(child, hung):
  said = child.log.read_text(errors='replace')
  ending = ' '.join(said[-400:].split())
  if hung:
    return 'failed', f'no end: {ending}'
  if 'Traceback' in said or child.code not in (0, 2, 3, 4, 5):
    return 'failed', f'{child.code}: {ending}'
  if not child.code:
    return ('ran', '') if 'Done: ' in said else ('failed', f'no target reached: {ending}')
  if 'ERROR: ' not in said:
    return 'failed', f'no message: {ending}'
  return ('refused_at_once' if 'JAX STARTS' not in said and child.code == 2 else 'refused_later'), ''
