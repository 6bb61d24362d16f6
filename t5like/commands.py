"""What each command of `command_line/` does. Heavy imports wait until the config is known to be right."""
import math
import os
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

from t5like import config as config_lib
from t5like.command_line import Request
from t5like.config_type import Config
from t5like.errors import ConfigError, Interrupted, NumericsError
from t5like.files import plain_json, writing

Parameters = dict[str, tuple[Any, ...]]  # {path: (shape, factors of the learning rate)}


def run(request: Request) -> None:
  """Runs the command of a `command_line.Request`."""
  name = request.command
  flags = request.flags
  if name in WITHOUT_CONFIG:
    WITHOUT_CONFIG[name](flags, request.overrides)
    return
  if not flags.config:
    raise ConfigError(f'--config is missing: try python main.py {name} '
                      '--config=configs/decoder_tiny.py; python main.py help lists all commands.')
  config = config_lib.load(flags.config, request.overrides)
  if flags.print_config or name != 'train':  # `train` prints warnings among the lines of the run
    _show_warnings(config)
  if flags.print_config:
    notes = _check(config, flags.workdir, here=False)
    _print_config(config)
    _show_notes(notes)
    return
  COMMANDS[name](config, flags)


def _show_warnings(config: Config) -> None:
  for warning in config_lib.warnings(config):
    print(f'WARNING: {warning}', file=sys.stderr)


def _check(
    config: Config,
    workdir: str | None,
    here: bool = True,
    create: bool = False,
) -> list[str]:
  """Checks everything that can be known before data is prepared or a device is touched; returns notes for people."""
  from t5like.training import preconditions
  return preconditions.check(config, workdir or '', here, create)


def _show_notes(notes: list[str]) -> None:
  for note in notes:
    print(f'Note: {note}', file=sys.stderr)


def _config_of_run(flags: Any) -> Config:
  """The config of the trained run in --workdir, whose checkpoint exists: checked before JAX starts."""
  from t5like.storage import workdir as workdir_lib
  if not flags.workdir:
    raise ConfigError('--workdir is missing: the folder of a trained model, such as runs/decoder_tiny.')
  step = getattr(flags, 'step', 0)  # not every command has --step
  config = workdir_lib.check_trained(flags.workdir, step)
  if getattr(flags, 'ema', False):
    workdir_lib.check_ema(config)
  return config


def _start_processes(flags: Any) -> None:
  from t5like import sharding
  sharding.start_processes(flags.coordinator, flags.num_processes, flags.process_id)


def _name(flags: Any) -> str:
  """'decoder_tiny' from configs/decoder_tiny.py, 'decoder_tiny-smoke' from its variant."""
  file, _, variant = flags.config.partition(':')
  name = pathlib.Path(file).stem
  if variant:
    name += f'-{variant}'
  return name


# --- Commands that take a config ------------------------------------------------------------------


def _train(config: Config, flags: Any) -> None:
  writing.steady_streams()
  from t5like.storage import workdir as workdir_lib
  workdir = flags.workdir or f'runs/{_name(flags)}'
  for key, old, new in workdir_lib.check_config(workdir, config):
    print(f'{key} was {old!r} in this run so far, and is {new!r} from now on.')
  result = workdir_lib.finished(workdir, config)
  if result:
    print(f'{workdir}: {result["reason"]} after {result["step"]:,} steps, {result["tokens"]:,} tokens, with '
          f'validation nll {result["validation"]["nll"]:.4f}. Nothing left to do; a larger '
          '--config.stop.tokens continues the run, another --workdir starts afresh.')
    return
  from t5like import sharding
  from t5like.observe import profiling
  if flags.profile_steps:
    profiling.parse(flags.profile_steps)
  _check(config, workdir, create=True)
  if flags.dump_xla:
    profiling.dump_xla(flags.dump_xla)
  sharding.start_processes(
      flags.coordinator,
      flags.num_processes,
      flags.process_id,
      config.watchdog.peers,
  )
  from t5like.training import loop
  loop.train(
      config,
      workdir,
      _name(flags),
      profile_steps=flags.profile_steps,
      leave=_leave,
  )


def _leave() -> None:
  """Handles a second Ctrl-C: ends the process at once."""
  writing.say('Ended at once (Ctrl-C twice). The same command resumes from the newest checkpoint.')
  os._exit(Interrupted.exit_code)


def _prepare(config: Config, flags: Any) -> None:
  writing.steady_streams()
  from t5like.batches.train_rows import TrainRows
  from t5like.config import stages
  from t5like.prepared import opening, prepare
  _check(config, flags.workdir)
  prepare.prepare(config)
  # Rows of whole documents need a plan, which is kept beside the tokens: better made now than on a pod.
  listed = stages.of(config)
  last = stages.course(listed)[-1]
  rows = TrainRows(opening.open_data(config), config)
  print(f'All {last.stop:,} steps of this config:')
  for line in rows.describe(last.row + last.steps * listed[-1].config.batch_size):
    print(f'  {line}')


def _preflight(config: Config, flags: Any) -> None:
  from t5like.preflight import page, search, staged, topologies
  if not flags.topology:
    raise ConfigError('--topology is missing: which TPUs, such as v5e-256, 2xv5e-256 (two slices) or v5p:4x4x8.')
  topology = topologies.parse(flags.topology)
  _show_notes(_check(config, flags.workdir, here=False))
  if flags.search:
    candidates: Any = search.search(config, topology)
    if not candidates:
      raise ConfigError(f'No layout tried fits {topology.name}: give more chips or a smaller batch_size.')
    if not flags.json:
      page.show_search(candidates)
    _, report = candidates[0]
  else:
    report = staged.predict(config, topology, flags.full)
  if flags.json:
    print(plain_json.dumps(report, indent=1))
  else:
    page.show(report, flags.price)
  if not report['fits']:
    raise ConfigError(f'This config does not fit {topology.name}; see above, or let --search look for one that does.')


def _inspect(config: Config, flags: Any) -> None:
  from t5like.batches import bad_batches, inspect
  from t5like.prepared import opening
  if flags.batch:
    bad_batches.read(flags.batch)
  elif flags.row is not None:
    _, stage = inspect.stage_of(config, flags.step)
    inspect.check_row(stage.config, flags.row)
  _check(config, flags.workdir)
  data = opening.open_data(config)
  if flags.batch:
    inspect.show_kept(data, flags.batch, flags.rows, flags.row)
  else:
    inspect.show(data, config, flags.step, flags.rows, flags.row)


# --- Commands of a workdir or of this machine -----------------------------------------------------


def _generate(flags: Any, overrides: tuple[str, ...]) -> None:
  _config_of_run(flags)
  from t5like.decoding import prompt_files
  _check_generate_flags(flags)
  prompts = flags.prompt or []
  prompt_files.check_prompts(prompts)
  options = dict(
      tokens=flags.tokens,
      temperature=flags.temperature,
      top_k=flags.top_k,
      top_p=flags.top_p,
      seed=flags.seed,
      beams=flags.beams,
      alpha=flags.alpha,
  )
  if flags.input:
    prompt_files.check(flags.input, flags.output, options)
  import jax

  from t5like.decoding import trained_model
  from t5like.observe import metrics
  devices = jax.local_devices() if flags.input else None
  model = trained_model.load(flags.workdir, flags.step or None, devices, flags.ema)
  if flags.input:
    count = prompt_files.answer_file(model, flags.input, flags.output, **options)
    print(f'{flags.output} holds all {count:,} answers.')
    return
  if len(prompts) <= 1:
    prompt = prompts[0] if prompts else ''
    between = metrics.between(model.style)
    prompt_files.show_stream(model, prompt, between, **options)
    return
  texts = model.generate(prompts, **options)
  for prompt, text in zip(prompts, texts):
    metrics.Screen('', 0).sample(prompt, text, model.style)


def _check_generate_flags(flags: Any) -> None:
  only_one_file = bool(flags.input) != bool(flags.output)
  two_sources = bool(flags.input) and bool(flags.prompt)
  if only_one_file or two_sources:
    raise ConfigError('generate takes prompts from --prompt (answers go to the terminal), or from --input, a JSONL '
                      'file (answers go to --output).')


def _evaluate(flags: Any, overrides: tuple[str, ...]) -> None:
  _config_of_run(flags)
  from t5like.evals import evaluate, plan, results
  name = 'evaluation_ema' if flags.ema else 'evaluation'
  output = flags.output or f'{flags.workdir}/{name}.json'
  results.check(output)
  tasks = plan.make(flags.tasks, flags.shots, flags.limit, flags.harness_path)
  if tasks.hopeless:
    evaluate.finished({}, tasks.problems)
  import jax

  import t5like
  _start_processes(flags)
  is_first = jax.process_index() == 0
  say = print if is_first else _ignore
  for name, problem in tasks.problems.items():
    say(f'WARNING: {name} will be left out. {problem}')
  run = t5like.load(flags.workdir, flags.step or None, jax.devices(), flags.ema)
  say(f'{flags.workdir}, step {run.step:,}')
  subject = evaluate.Subject(
      run.model,
      run.params,
      run.vocabulary,
      run.config,
      run.mesh,
  )
  key = dict(
      step=run.step,
      shots=flags.shots,
      limit=flags.limit,
  )
  results_file = results.Kept(output, key, say)
  keep = results_file.add if is_first else _ignore
  done, errors = tasks.run(subject, say, keep)
  if is_first and done:
    results_file.close()
    say(f'{output} has these numbers.')
  evaluate.finished(done, errors)


def _ignore(value: Any) -> None:
  """Reports on processes other than the first."""


def _selftest(flags: Any, overrides: tuple[str, ...]) -> None:
  from t5like import selftest
  outcomes = selftest.selftest(flags.only)
  selftest.show(outcomes)
  failed = [outcome.name for outcome in outcomes if 'FAILED' in outcome.problem]
  if failed:
    raise NumericsError(f'selftest: {", ".join(failed)} failed on this machine with these versions. Do not train here '
                        'before the cause is known; please report the table above.')


def _replay(flags: Any, overrides: tuple[str, ...]) -> None:
  _require_run(flags)
  _config_of_run(flags)
  from t5like.training import replay
  _start_processes(flags)
  count = replay.replay(flags.workdir, flags.steps)
  print(f'{flags.steps} steps done twice from the newest checkpoint: {count:,} numbers and arrays, all the same.')


def _require_run(flags: Any) -> None:
  if not flags.workdir:
    raise ConfigError('--workdir is missing: the folder of a run, such as runs/decoder_tiny.')


def _report(flags: Any, overrides: tuple[str, ...]) -> None:
  _require_run(flags)
  from t5like.observe import report
  path, account = report.write(flags.workdir, flags.output, flags.compare)
  if account['attempts']:
    report.show(account)
  print(f'{path} shows it.')


def _average(flags: Any, overrides: tuple[str, ...]) -> None:
  if not flags.workdir or not flags.out:
    raise ConfigError('main.py average needs --workdir, the folder of a trained model, and --out, a new folder for the '
                      'averaged one.')
  _config_of_run(flags)
  steps = [_step(text) for text in flags.checkpoints]
  from t5like.training import averaging
  averaging.average(flags.workdir, flags.out, steps, flags.weights, ema=flags.ema)
  print(f'{flags.out} is ready: python main.py evaluate --workdir={shlex.quote(flags.out)}')


def _step(text: str) -> int:
  if not text.isdecimal():
    raise ConfigError(f'--checkpoints has {text!r}: give steps, such as --checkpoints=1000,1200.')
  return int(text)


def _compare(flags: Any, overrides: tuple[str, ...]) -> None:
  from t5like.observe import compare
  result = compare.compare(flags.runs)
  if flags.json:
    print(plain_json.dumps(result))
  else:
    compare.show(result)
  if flags.output:
    path = compare.write_page(flags.runs, flags.output)
    print(f'{path} shows the curves.', file=sys.stderr)


def _export(flags: Any, overrides: tuple[str, ...]) -> None:
  if not flags.workdir or not flags.out:
    raise ConfigError('main.py export needs --workdir, the folder of a trained model, and --out, a new folder for '
                      'transformers to read.')
  config = _config_of_run(flags)
  from t5like.huggingface import runs
  runs.check_export(config, flags.out)
  for note in runs.export_run(flags.workdir, flags.out, flags.ema):
    print(f'Note: {note}')
  print(f'{flags.out} is ready: AutoTokenizer.from_pretrained and AutoModel...from_pretrained read it.')


def _import(flags: Any, overrides: tuple[str, ...]) -> None:
  if not flags.workdir or not flags.folder:
    raise ConfigError('main.py import needs --folder, a Hugging Face model (config.json, *.safetensors and a '
                      'tokenizer), and --workdir, a new folder.')
  from t5like.huggingface import runs
  from t5like.training import preconditions
  preconditions.check_workdir(flags.workdir)
  runs.import_folder(flags.folder, flags.workdir, overrides, flags.fresh_head)
  print(f'{flags.workdir} is ready: python main.py generate --workdir={shlex.quote(flags.workdir)} --prompt=...\n'
        f'To train it further, copy {flags.workdir}/config.py, choose its data and stop.tokens, and give another '
        '--workdir.')


# --- --print_config -------------------------------------------------------------------------------


def _print_config(config: Config) -> None:
  """Prints all keys, special tokens where the vocabulary's file exists, derived numbers and parameters."""
  from rich.console import Console

  from t5like.files import mirror
  from t5like.model import models
  from t5like.vocabulary.requirements import check_vocabulary
  console = Console(highlight=False, soft_wrap=True)
  vocabulary = None
  if not config.vocabulary.path or mirror.is_file(config.vocabulary.path):
    vocabulary = check_vocabulary(config)
  config = config_lib.resolve(config)
  for key, value, changed in config_lib.describe(config):
    console.print(f'{key:32} {value!r}', style='bold' if changed else 'dim', markup=False)
  if vocabulary is not None:
    _print_special(console, vocabulary)
  parameters = models.parameters(config)
  _print_derived(console, config, parameters)
  _print_parameters(console, parameters)


def _print_special(console: Any, vocabulary: Any) -> None:
  console.print('\nSpecial tokens, and their ids', style='bold underline')
  for role, ids in vocabulary.special().items():
    console.print(f'{role:32} {_token(vocabulary, ids)}', markup=False)
  console.print(f'{"sentinels":32} {vocabulary.num_sentinels}', markup=False)


def _token(vocabulary: Any, ids: int | list[int] | None) -> str:
  """An id, or a list of them, with its text where that is known."""
  if isinstance(ids, list):
    return ', '.join(_token(vocabulary, one) for one in ids)
  if isinstance(ids, int) and hasattr(vocabulary, 'pieces'):
    piece = vocabulary.pieces([ids])[0]
    return f'{ids} {piece!r}'
  return str(ids)


def _print_derived(
    console: Any,
    config: Config,
    parameters: Parameters,
) -> None:
  from t5like.model import models
  from t5like.observe import metrics
  console.print('\nDerived', style='bold underline')
  derived = config_lib.derived(config)
  if config.model.vocab_size:
    derived.update(models.sizes(config))
    derived['trained'] = _count_trained(parameters)
  for key, value in derived.items():
    text = f'{value:.4g}'
    if isinstance(value, int):
      text = f'{value:,} ({metrics.short(value)})'
    console.print(f'{key:32} {text}', markup=False)
  _print_stages(console, config)
  if not config.model.vocab_size:
    console.print('Parameters and FLOPs need model.vocab_size, which the vocabulary will set.')


def _print_stages(console: Any, config: Config) -> None:
  """The stages of a config that has any, with their steps."""
  from t5like.config import stages
  listed = stages.of(config)
  if len(listed) == 1:
    return
  console.print('\nStages', style='bold underline')
  before = listed[0]
  for stretch in stages.course(listed):
    stage = listed[stretch.stage]
    size = f'{stage.config.batch_size} x {stage.config.data.seq_len}'
    place = f'{stretch.tokens:,} tokens, row {stretch.row:,}'
    text = f'steps {stretch.step:,} to {stretch.stop:,} of {size}, from {place}'
    if stage.where:
      text = f'{text}: {stages.in_words(stage.changes, before.config)}'
    console.print(f'{stage.where or "at first":32} {text}', markup=False)
    before = stage


def _count_trained(parameters: Parameters) -> int:
  """How many values have a learning rate above 0."""
  count = 0
  for shape, rates in parameters.values():
    share = (rates > 0).mean()
    count += round(math.prod(shape) * share)
  return count


def _print_parameters(console: Any, parameters: Parameters) -> None:
  from t5like.config import trainable
  console.print('\nParameters, and the factor of their learning rate', style='bold underline')
  width = max(map(len, parameters)) + 1
  for path, (shape, rates) in parameters.items():
    sizes = ' x '.join(str(size or 'V') for size in shape)
    console.print(f'{path:{width}} {sizes:20} {trainable.in_words(rates)}', markup=False)


COMMANDS: dict[str, Callable[[Config, Any], None]] = {
    'train': _train,
    'prepare': _prepare,
    'inspect': _inspect,
    'preflight': _preflight,
}
WITHOUT_CONFIG: dict[str, Callable[[Any, tuple[str, ...]], None]] = {
    'evaluate': _evaluate,
    'generate': _generate,
    'average': _average,
    'compare': _compare,
    'export': _export,
    'import': _import,
    'report': _report,
    'selftest': _selftest,
    'replay': _replay,
}
