"""What each command of `command_line.py` does. Heavy imports wait until the config is known to be right."""
import math
import pathlib
import shlex
import sys

from t5like import config as config_lib, plain_json, writing
from t5like.errors import ConfigError, Interrupted, NumericsError


def run(request):
  """Runs the command of a `command_line.Request`."""
  name = request.command
  flags = request.flags
  if name in WITHOUT_CONFIG:
    return WITHOUT_CONFIG[name](flags, request.overrides)
  if not flags.config:
    raise ConfigError(f'--config is missing: try python main.py {name} '
                      '--config=configs/decoder_tiny.py; python main.py help lists all commands.')
  config = config_lib.load(flags.config, request.overrides)
  if flags.print_config or name != 'train':  # which says it among the run's own lines
    for warning in config_lib.warnings(config):
      print(f'WARNING: {warning}', file=sys.stderr)
  if flags.print_config:
    notes = _check(config, flags.workdir, here=False)
    _print_config(config)
    return _show_notes(notes)
  return COMMANDS[name](config, flags)


def _check(config, workdir, here=True, create=False):
  """Everything that can be known before data is prepared or a device is touched; returns notes, [text]."""
  from t5like import preconditions
  return preconditions.check(config, workdir or '', here, create)


def _show_notes(notes):
  for note in notes:
    print(f'Note: {note}', file=sys.stderr)


def _of_run(flags):
  """The config of the trained run in --workdir, whose checkpoint is there: known before JAX starts."""
  from t5like import workdir as workdir_lib
  if not flags.workdir:
    raise ConfigError('--workdir is missing: the folder of a trained model, such as runs/decoder_tiny.')
  return workdir_lib.check_trained(flags.workdir, flags.step if hasattr(flags, 'step') else 0)


def _name(flags):
  """'decoder_tiny' from configs/decoder_tiny.py, 'decoder_tiny-smoke' from its variant."""
  file, _, variant = flags.config.partition(':')
  return pathlib.Path(file).stem + (f'-{variant}' if variant else '')


def _train(config, flags):
  writing.steady_streams()
  from t5like import workdir as workdir_lib
  workdir = flags.workdir or f'runs/{_name(flags)}'
  for key, old, new in workdir_lib.check_config(workdir, config):
    print(f'{key} was {old!r} in this run so far, and is {new!r} from now on.')
  done = workdir_lib.finished(workdir, config)
  if done:
    print(f'{workdir}: {done["reason"]} after {done["step"]:,} steps, {done["tokens"]:,} tokens, with '
          f'validation nll {done["validation"]["nll"]:.4f}. Nothing left to do; a larger '
          '--config.stop.tokens goes on, another --workdir starts afresh.')
    return
  from t5like import profiling, sharding
  if flags.profile_steps:
    profiling.parse(flags.profile_steps)
  _check(config, workdir, create=True)
  if flags.dump_xla:
    profiling.dump_xla(flags.dump_xla)
  sharding.start_processes(flags.coordinator, flags.num_processes, flags.process_id, config.watchdog.peers)
  from t5like import loop
  loop.train(config, workdir, _name(flags), profile_steps=flags.profile_steps, leave=_leave)


def _leave():
  """What a second Ctrl-C does."""
  import os
  writing.say('Ended at once (Ctrl-C twice). The same command resumes from the newest checkpoint.')
  os._exit(Interrupted.exit_code)


def _prepare(config, flags):
  writing.steady_streams()
  from t5like import opening
  from t5like.data import pipeline, prepare
  _check(config, flags.workdir)
  prepare.prepare(config)
  # Rows of whole documents need a plan, which is kept beside the tokens: better now than on a pod.
  steps = config_lib.derived(config)['steps']
  print(f'All {steps:,} steps of this config:')
  for line in pipeline.TrainRows(opening.open_data(config), config).describe(steps * config.batch_size):
    print(f'  {line}')


def _preflight(config, flags):
  from t5like import preflight, preflight_report, tpu
  if not flags.topology:
    raise ConfigError('--topology is missing: which TPUs, such as v5e-256, 2xv5e-256 (two slices) or v5p:4x4x8.')
  topology = tpu.parse(flags.topology)
  _show_notes(_check(config, flags.workdir, here=False))
  if flags.search:
    found = preflight.search(config, topology)
    if not found:
      raise ConfigError(f'Nothing that was tried fits {topology.name}: give more chips or a smaller batch_size.')
    if not flags.json:
      preflight_report.show_search(found)
    report = found[0][1]
  else:
    report = preflight.predict(config, topology, flags.full)
  if flags.json:
    print(plain_json.dumps(report, indent=1))
  else:
    preflight_report.show(report, flags.price)
  if not report['fits']:
    raise ConfigError(f'This config does not fit {topology.name}; see above, or let --search look for one that does.')


def _inspect(config, flags):
  from t5like import opening
  from t5like.data import inspect, kept
  if flags.batch:
    kept.read(flags.batch)
  elif flags.row is not None:
    inspect.check_row(config, flags.row)
  _check(config, flags.workdir)
  if flags.batch:
    return inspect.show_kept(opening.open_data(config), flags.batch, flags.rows, flags.row)
  inspect.show(opening.open_data(config), config, flags.step, flags.rows, flags.row)


def _generate(flags, overrides):
  _of_run(flags)
  if bool(flags.input) != bool(flags.output) or flags.input and flags.prompt:
    raise ConfigError('generate takes prompts from --prompt (answers go to the terminal), or from --input, a JSONL '
                      'file (answers go to --output).')
  from t5like import answering
  answering.check_prompts(flags.prompt or [])
  if flags.input:
    answering.check(flags.input, flags.output)
  import jax

  from t5like import loaded, metrics
  model = loaded.load(flags.workdir, flags.step or None, jax.local_devices() if flags.input else None)
  how = dict(tokens=flags.tokens, temperature=flags.temperature, top_k=flags.top_k, top_p=flags.top_p, seed=flags.seed,
             beams=flags.beams, alpha=flags.alpha)
  if flags.input:
    count = answering.answer_file(model, flags.input, flags.output, **how)
    print(f'{flags.output} holds all {count:,} answers.')
  elif len(flags.prompt or ['']) == 1:
    between = metrics.between(model.style)
    answering.show_stream(model, (flags.prompt or [''])[0], between, **how)
  else:
    for prompt, text in zip(flags.prompt, model.generate(flags.prompt, **how)):
      metrics.Screen('', 0).sample(prompt, text, model.style)


def _evaluate(flags, overrides):
  _of_run(flags)
  from t5like.evals import evaluate, plan, results
  out = flags.output or f'{flags.workdir}/evaluation.json'
  results.check(out)
  asked = plan.make(flags.tasks, flags.shots, flags.limit, flags.harness_path)
  if asked.hopeless:
    evaluate.finished({}, asked.problems)
  import jax

  import t5like
  from t5like import sharding
  sharding.start_processes(flags.coordinator, flags.num_processes, flags.process_id)
  first = jax.process_index() == 0
  say = print if first else lambda _: None
  for name, problem in asked.problems.items():
    say(f'WARNING: {name} will be left out. {problem}')
  run = t5like.load(flags.workdir, flags.step or None, jax.devices())
  say(f'{flags.workdir}, step {run.step:,}')
  subject = evaluate.Subject(run.model, run.params, run.vocabulary, run.config, run.mesh)
  kept = results.Kept(out, dict(step=run.step, shots=flags.shots, limit=flags.limit), say)
  done, errors = asked.run(subject, say, kept.add if first else lambda _: None)
  if first and done:
    kept.close()
    say(f'{out} has these numbers.')
  evaluate.finished(done, errors)


def _selftest(flags, overrides):
  from t5like import selftest
  found = selftest.selftest(flags.only)
  selftest.show(found)
  failed = [name for name, *_, problem in found if 'FAILED' in problem]
  if failed:
    raise NumericsError(f'selftest: {", ".join(failed)} failed on this machine with these versions. Do not train here '
                        'before it is known why; please report the table above.')


def _replay(flags, overrides):
  if not flags.workdir:
    raise ConfigError('--workdir is missing: the folder of a run, such as runs/decoder_tiny.')
  _of_run(flags)
  from t5like import replay, sharding
  sharding.start_processes(flags.coordinator, flags.num_processes, flags.process_id)
  count = replay.replay(flags.workdir, flags.steps)
  print(f'{flags.steps} steps done twice from the newest checkpoint: {count:,} numbers and arrays, all the same.')


def _report(flags, overrides):
  if not flags.workdir:
    raise ConfigError('--workdir is missing: the folder of a run, such as runs/decoder_tiny.')
  from t5like import report
  path, account = report.write(flags.workdir, flags.output, flags.compare)
  if account['attempts']:
    report.show(account)
  print(f'{path} shows it.')


def _export(flags, overrides):
  if not flags.workdir or not flags.out:
    raise ConfigError('main.py export needs --workdir, the folder of a trained model, and --out, a new folder for '
                      'transformers to read.')
  config = _of_run(flags)
  from t5like import interchange
  interchange.check_export(config, flags.out)
  for note in interchange.export_run(flags.workdir, flags.out):
    print(f'Note: {note}')
  print(f'{flags.out} is ready: AutoTokenizer.from_pretrained and AutoModel...from_pretrained read it.')


def _import(flags, overrides):
  if not flags.workdir or not flags.folder:
    raise ConfigError("main.py import needs --folder, a model of Hugging Face's (config.json, *.safetensors and a "
                      'tokenizer), and --workdir, a new folder.')
  from t5like import interchange, preconditions
  preconditions.check_workdir(flags.workdir)
  interchange.import_folder(flags.folder, flags.workdir, overrides)
  print(f'{flags.workdir} is ready: python main.py generate --workdir={shlex.quote(flags.workdir)} --prompt=...\n'
        f'To train it on, copy {flags.workdir}/config.py, choose its data and stop.tokens, and give another --workdir.')


def _print_config(config):
  from rich.console import Console

  from t5like import metrics, models, trained
  from t5like.data import mirror
  from t5like.data.vocabulary_check import check_vocabulary
  console = Console(highlight=False, soft_wrap=True)
  there = not config.vocabulary.path or mirror.is_file(config.vocabulary.path)
  vocabulary = check_vocabulary(config) if there else None
  config = config_lib.resolve(config)
  for key, value, changed in config_lib.describe(config):
    console.print(f'{key:32} {value!r}', style='bold' if changed else 'dim', markup=False)
  if vocabulary is not None:
    _print_special(console, vocabulary)
  console.print('\nDerived', style='bold underline')
  derived = config_lib.derived(config)
  parameters = models.parameters(config)
  if config.model.vocab_size:
    derived.update(models.sizes(config), trained=sum(
        round(math.prod(shape) * (rates > 0).mean()) for shape, rates in parameters.values()))
  for key, value in derived.items():
    text = f'{value:,} ({metrics.short(value)})' if isinstance(value, int) else f'{value:.4g}'
    console.print(f'{key:32} {text}', markup=False)
  if not config.model.vocab_size:
    console.print('Parameters and FLOPs need model.vocab_size, which the vocabulary will set.')
  console.print('\nParameters, and what their learning rate is multiplied by', style='bold underline')
  width = max(map(len, parameters)) + 1
  for path, (shape, rates) in parameters.items():
    sizes = ' x '.join(str(n or 'V') for n in shape)
    console.print(f'{path:{width}} {sizes:20} {trained.in_words(rates)}', markup=False)


def _print_special(console, vocabulary):
  console.print('\nSpecial tokens, and their ids', style='bold underline')
  for role, i in vocabulary.special().items():
    console.print(f'{role:32} {_token(vocabulary, i)}', markup=False)
  console.print(f'{"sentinels":32} {vocabulary.num_sentinels}', markup=False)


def _token(vocabulary, i):
  """An id, or a list of them, with its text where that is known."""
  if isinstance(i, list):
    return ', '.join(_token(vocabulary, one) for one in i)
  known = isinstance(i, int) and hasattr(vocabulary, 'pieces')
  return f'{i} {vocabulary.pieces([i])[0]!r}' if known else str(i)


COMMANDS = dict(train=_train, prepare=_prepare, inspect=_inspect, preflight=_preflight)
WITHOUT_CONFIG = dict(evaluate=_evaluate, generate=_generate, export=_export, report=_report,
                      selftest=_selftest, replay=_replay, **{'import': _import})
