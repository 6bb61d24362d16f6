"""The files of a run that never was: long, interrupted, a mixture, with a rewind, tasks and odd samples."""
import json
import math
import random

from t5like.config import base
from t5like.storage import workdir as workdir_lib


def write_run(folder, steps=800, **model):
  """Lines as loop.py writes them, of `steps` steps of 131,072 tokens; model: keys of config.model."""
  rng, c = random.Random(0), base()
  c.stop.tokens, c.batch_size, c.data.seq_len = 1000 * 131_072, 128, 1024
  c.model.update(model)
  workdir_lib.write_config(folder, c)
  metrics, ledger, now = [], [], 1_790_000_000.0
  for step in range(1, steps + 1):
    metrics.append(dict(
        step=step, time=now + step, tokens=step * 131_072, examples_seen=step * 128, loss=2.2 + 8 / step ** 0.5
        + rng.gauss(0, 0.03), nll=2.2, accuracy=0.5 - 0.4 / step ** 0.5, tokens_per_second=90_000 + rng.gauss(0, 2500),
        mfu=0.46, grad_norm=math.exp(rng.gauss(0, 0.3)) * (1 + 5 / step), update_norm=0.1, bad_steps=3 * (step > 400),
        spikes=0, learning_rate=1e-3 * min(1, step / 80) * (1 - step / 1000), data_wait=0.01,
        host_memory=1.5 + step / 1e5, device_memory=11.25,
        **{'rows/code': 90 * step, 'rows/prose <b>': 38 * step}))
    if step % 100 == 0:
      metrics.append({'step': step, 'time': now + step, 'validation/nll': 2.25 + 8 / step ** 0.5,
                      'validation/bits_per_byte': 0.8, 'tasks/arithmetic/accuracy': step / 1000})
  for attempt, first, last in ((1, 0, steps // 2 + 7), (2, steps // 2, steps)):
    ledger.append(dict(attempt=attempt, time=now + 20, step=first, seconds=dict(init=20.0), event='start', began=now,
                       commit='abc1234+', devices='256 x TPU v5 lite, 64 hosts', versions='Python 3.12.1, jax 0.12.0'))
    for step in range(first + 1, last + 1):
      now += 1.5
      ledger.append(dict(attempt=attempt, time=now + 20, step=step, seconds=dict(step=1.4, data=0.02, save=0.08)))
    now += 400
  write = lambda name, lines: (folder / name).write_text(''.join(json.dumps(line) + '\n' for line in lines))
  write('metrics.jsonl', metrics)
  write('ledger.jsonl', ledger)
  write('samples.jsonl', [dict(step=steps, prompt='def read(', text='path):\n  return open(path).read()'),
                          dict(step=steps, prompt='', text='</script><script>hacked = 1</script> & <b>é 日本</b>')])
  if steps > 1:
    workdir_lib.write_json(folder / 'rewinds.json', [dict(from_step=412, to_step=400, rows=[51_200, 52_736],
                                                          why='3 steps in a row were not finite')])
