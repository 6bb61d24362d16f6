"""The front door: python main.py [train|prepare|inspect|preflight|evaluate|generate|report|selftest|..] --flags."""
import os
import signal
import sys
import traceback

from absl import app, flags

app.define_help_flags()
flags.DEFINE_string('config', None, 'Config file, with a variant after a colon if it has any.')
flags.DEFINE_string('workdir', None, 'Where a run leaves everything; default runs/CONFIG.')
flags.DEFINE_bool('print_config', False, 'Show every value and every derived number, and end.')
flags.DEFINE_bool('debug', False, 'Show where an error was raised.')
flags.DEFINE_integer('step', 0, 'inspect: whose batch is shown; evaluate, generate: the checkpoint; 0: the newest.')
flags.DEFINE_integer('rows', 2, 'inspect: how many rows of it.')
flags.DEFINE_string('batch', None, 'inspect: a file of WORKDIR/bad_steps, instead of the batch of a step.')
flags.DEFINE_integer('row', None, 'inspect: only this row of it, counted from 0.')
flags.DEFINE_string('topology', None, 'preflight: TPUs, such as v5e-256, 2xv5e-256 or v5p:4x4x8.')
flags.DEFINE_bool('search', False, 'preflight: try meshes, layouts and remat, and say what is fastest.')
flags.DEFINE_bool('full', False, 'preflight: compile to the end, minutes instead of seconds.')
flags.DEFINE_bool('json', False, 'preflight: all that was found, for programs.')
flags.DEFINE_float('price', 0.0, 'preflight: of a chip for an hour, to tell the cost.')
flags.DEFINE_string('profile_steps', '', 'train: trace these steps, such as 10:13, into WORKDIR/profile.')
flags.DEFINE_string('dump_xla', None, 'train: write what the compiler makes of the steps into this folder.')
flags.DEFINE_list('tasks', [], 'evaluate: built-in tasks, paths of task files, harness:NAME; default: all built in.')
flags.DEFINE_integer('shots', -1, 'evaluate: worked examples before each question; -1: as many as the task says.')
flags.DEFINE_integer('limit', 0, 'evaluate: only so many questions of each task; 0: all.')
flags.DEFINE_string('harness_path', None, 'evaluate: a folder with task files of lm-evaluation-harness.')
flags.DEFINE_string('input', None, 'generate: JSONL with a prompt on each line, to be answered in --output.')
flags.DEFINE_string('output', None, 'generate: JSONL with answers; evaluate: JSON; report: HTML.')
flags.DEFINE_multi_string('prompt', None, 'generate: text to continue; may be given several times.')
flags.DEFINE_integer('tokens', 128, 'generate: how many at most.')
flags.DEFINE_float('temperature', 0.8, 'generate: 0 takes the likeliest token each time.')
flags.DEFINE_integer('top_k', 40, 'generate: sample from the k likeliest; 0 from all.')
flags.DEFINE_float('top_p', 1.0, 'generate: sample from the likeliest that hold this share.')
flags.DEFINE_integer('beams', 1, 'generate: above 1, beam search of so many; temperature does not count.')
flags.DEFINE_float('alpha', 0.6, 'generate: length penalty of beam search (Wu et al. 2016); 0: none.')
flags.DEFINE_integer('seed', 0, 'generate: other seeds give other text.')
flags.DEFINE_string('out', None, 'export: a new folder, for transformers.')
flags.DEFINE_string('folder', None, "import: a folder of Hugging Face's, with config.json and *.safetensors.")
flags.DEFINE_list('only', [], 'selftest: some of its checks.')
flags.DEFINE_integer('steps', 10, 'replay: how many.')
flags.DEFINE_string('coordinator', '', 'host:port of process 0, where the cluster does not say.')
flags.DEFINE_integer('num_processes', 0, 'With --coordinator.')
flags.DEFINE_integer('process_id', 0, 'With --coordinator.')


def main(argv):
  from t5like import commands
  from t5like.errors import ConfigError, Failure
  # Until training puts JAX's own in its place, which saves first.
  signal.signal(signal.SIGTERM, lambda *_: leave(75, 'Ended (SIGTERM) before anything was done that could be lost. The '
                                                     'same command begins again.'))
  overrides = [a[len('--config.'):] for a in argv if a.startswith('--config.')]
  try:
    try:
      rest = flags.FLAGS([a for a in argv if not a.startswith('--config.')])[1:]
    except flags.Error as e:
      raise ConfigError(f'{e} (python main.py --help lists the flags.)') from e
    commands.run(rest, flags.FLAGS, overrides)
  except Failure as e:
    if '--debug' in argv:
      traceback.print_exc()
    leave(e.exit_code, f'{e}' if e.exit_code == 75 else f'ERROR: {e}')
  except KeyboardInterrupt:
    leave(130, 'Interrupted. A run goes on from its newest checkpoint with the same command.')
  except Exception:
    traceback.print_exc()
    leave(1, 'ERROR: the above is a fault in t5like, not in your input. Please report it.')


def leave(code, message):
  """Ends the process at once: with peers, a clean end would wait for all of them."""
  sys.stdout.flush()
  print(f'\n{message}', file=sys.stderr, flush=True)
  os._exit(code)


if __name__ == '__main__':
  main(sys.argv)
