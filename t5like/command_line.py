"""The command line: which commands there are, which flags each takes, what `--help` says, and what was given.

    python main.py [COMMAND] [--flag=value ..] [--config.key=value ..]

Flags are absl's: --flag=value or --flag value, one dash or two, --yes or --noyes for those that are on or off,
--flagfile. Nothing here imports JAX: help and mistakes take a fraction of a second.
"""
import dataclasses
import math
import textwrap
from typing import Any

from absl import flags

from t5like import __version__, lengths, paths
from t5like.config_values import DEFAULTS, cut, either, parse, unknown
from t5like.errors import ConfigError
from t5like.nearest import nearest, suggestion

HELP = ('help', 'h', '?', 'helpshort', 'helpfull')
WIDTH = 100
LONGEST = 4096  # characters of a flag, texts to continue aside


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of one or more commands.

  kind: what its value is, a key of KINDS; default: its value where it is not given; low, high: the least and
  greatest value that it takes; value: what stands for the value in help, such as FOLDER.
  """
  kind: str
  default: Any = None
  value: str = ''
  low: float = -math.inf
  high: float = math.inf
  above: float = -math.inf  # greater than this


@dataclasses.dataclass(frozen=True)
class Command:
  """What a command does, in a line and in an example, and its flags: {name: what it means there}."""
  does: str
  example: str
  flags: dict
  takes_config: bool = False


class Whole(flags.ArgumentParser):
  """Whole numbers as config keys take them: 12, 1_000, 250K."""
  syntactic_help = 'a whole number, such as 12, 1_000 or 250K'

  def parse(self, argument):
    value = lengths.whole_number(argument) if isinstance(argument, str) else argument
    if value is None or abs(value) >= 2 ** 63:
      raise ValueError(self.syntactic_help)
    return value


class Number(flags.ArgumentParser):
  syntactic_help = 'a finite number, such as 0.1, 2 or 3e-4'

  def parse(self, argument):
    try:
      value = float(argument)
    except ValueError:
      value = math.nan
    if not math.isfinite(value):
      raise ValueError(self.syntactic_help)
    return value


KINDS = ('text', 'whole', 'number', 'yes', 'list', 'texts')

FLAGS = {
    'config': Flag('text', value='FILE[:VARIANT]'),
    'workdir': Flag('text', value='FOLDER'),
    'print_config': Flag('yes', False),
    'debug': Flag('yes', False),
    'step': Flag('whole', 0, low=0),
    'rows': Flag('whole', 2, low=1),
    'batch': Flag('text', value='FILE'),
    'row': Flag('whole', low=0),
    'topology': Flag('text', value='TPUS'),
    'search': Flag('yes', False),
    'full': Flag('yes', False),
    'json': Flag('yes', False),
    'price': Flag('number', 0.0, low=0),
    'profile_steps': Flag('text', '', value='FIRST:STOP'),
    'dump_xla': Flag('text', value='FOLDER'),
    'tasks': Flag('list', (), value='NAME,NAME..'),
    'shots': Flag('whole', -1, low=-1),
    'limit': Flag('whole', 0, low=0),
    'harness_path': Flag('text', value='FOLDER'),
    'input': Flag('text', value='FILE'),
    'output': Flag('text', value='FILE'),
    'prompt': Flag('texts', value='TEXT'),
    'tokens': Flag('whole', 128, low=1),
    'temperature': Flag('number', 0.8, low=0),
    'top_k': Flag('whole', 40, low=0),
    'top_p': Flag('number', 1.0, above=0, high=1),
    'beams': Flag('whole', 1, low=1),
    'alpha': Flag('number', 0.6, low=0),
    'seed': Flag('whole', 0, low=0, high=2 ** 32 - 1),
    'out': Flag('text', value='FOLDER'),
    'folder': Flag('text', value='FOLDER'),
    'compare': Flag('list', (), value='FOLDER,FOLDER..'),
    'only': Flag('list', (), value='NAME,NAME..'),
    'steps': Flag('whole', 10, low=1),
    'coordinator': Flag('text', '', value='HOST:PORT'),
    'num_processes': Flag('whole', 0, low=0),
    'process_id': Flag('whole', 0, low=0),
}

EVERYWHERE = dict(debug='Show where in the program an error was raised.')
OF_A_CONFIG = dict(
    config='The config: a file, or its name in configs/; the variant after a colon if it has any. Any of its keys is '
           'changed by --config.KEY=VALUE.',
    print_config='Check everything, show every value and every derived number, and end.')
RUN = 'The folder of the run, on disk or gs://.'
CLUSTER = dict(
    coordinator='Address of process 0, where the cluster does not tell processes of each other.',
    num_processes='With --coordinator: how many processes there are.',
    process_id='With --coordinator: which of them this is, from 0.')
CHECKPOINT = 'Which checkpoint; 0: the newest.'

COMMANDS = {
    'train': Command(
        'Trains a model, or resumes the run in --workdir. The command when none is named.',
        '--config=configs/decoder_tiny.py --config.stop.tokens=10M --workdir=runs/mine',
        dict(OF_A_CONFIG, workdir='Where the run leaves everything. Default: runs/CONFIG.',
             profile_steps='Trace these steps, such as 10:13, into WORKDIR/profile.',
             dump_xla='Write what the compiler makes of the steps into this folder.', **CLUSTER), True),
    'prepare': Command(
        'Turns text into tokens, once. Training does it by itself on one machine.',
        '--config=configs/decoder_tiny.py',
        dict(OF_A_CONFIG, workdir='The folder of the run that will follow, to be checked too.'), True),
    'inspect': Command(
        'Shows the batch of any step, and where its text came from.',
        '--config=configs/decoder_tiny.py --step=100 --rows=1',
        dict(OF_A_CONFIG, workdir='The folder of the run, to be checked too.', step='Whose batch is shown, from 0.',
             rows='How many rows of it.', row='Only this row of it, counted from 0.',
             batch='A file of WORKDIR/bad_steps, in place of the batch of a step.'), True),
    'preflight': Command(
        'Compiles for TPUs without having any: whether a run fits, how fast it is and what it costs.',
        '--config=configs/decoder_1b.py --topology=v5e-64 --price=1.2',
        dict(OF_A_CONFIG, workdir='The folder of the run that will follow, to be checked too.',
             topology='Which TPUs, such as v5e-256, 2xv5e-256 (two slices) or v5p:4x4x8.',
             search='Try meshes, layouts and remat, and show what is fastest.',
             full='Compile to the end, minutes instead of seconds.', json='Print all results as JSON, for programs.',
             price='Of a chip for an hour, to compute the cost.'), True),
    'generate': Command(
        'Continues, fills in or answers prompts.',
        "--workdir=runs/decoder_tiny --prompt='def read(' --temperature=0.5",
        dict(workdir=RUN, step=CHECKPOINT, prompt='Text to continue; may be given several times.',
             input='JSONL with a prompt on each line, to be answered in --output.',
             output='Where the answers to --input are written, as JSONL.', tokens='Of an answer, at most.',
             temperature='Of sampling; 0 takes the likeliest token each time.',
             top_k='Sample from the k likeliest tokens; 0: from all.',
             top_p='Sample from the likeliest tokens that hold this share of probability.',
             beams='Above 1, beam search of so many; temperature does not count.',
             alpha='Length penalty of beam search (Wu et al. 2016); 0: none.', seed='Another seed gives other text.')),
    'evaluate': Command(
        'Asks a trained model questions: built-in tasks, your own, or those of lm-evaluation-harness.',
        '--workdir=runs/decoder_tiny --tasks=agreement,next_line --limit=8',
        dict(workdir=RUN, step=CHECKPOINT,
             tasks='Built-in tasks, paths of task files, harness:NAME. Default: all that are built in.',
             shots='Worked examples before each question; -1: as many as the task says.',
             limit='Only so many questions of each task; 0: all.',
             harness_path='A folder with task files of lm-evaluation-harness.',
             output='JSON with the results. Default: WORKDIR/evaluation.json.', **CLUSTER)),
    'report': Command(
        'Shows where the time of a run went, and writes a page with all its curves.',
        '--workdir=runs/decoder_tiny',
        dict(workdir=RUN, output='The page. Default: WORKDIR/report.html.',
             compare='Folders of further runs, whose curves are drawn beside.')),
    'export': Command(
        'Writes a trained model for transformers.',
        '--workdir=runs/decoder_tiny --out=exported',
        dict(workdir=RUN, out='A new folder.')),
    'import': Command(
        'Makes a run of a model from Hugging Face.',
        '--folder=some/bert --workdir=runs/bert',
        dict(workdir='A new folder for the run.',
             folder='The model: config.json, *.safetensors and a tokenizer. --config.KEY=VALUE changes its config.')),
    'replay': Command(
        'Repeats steps from the newest checkpoint and compares every bit.',
        '--workdir=runs/decoder_tiny --steps=10',
        dict(workdir=RUN, steps='How many.', **CLUSTER)),
    'selftest': Command(
        'Checks this machine and these versions: resuming, meshes, hosts, packing and more.',
        '',
        dict(only='Some of its checks.')),
}
TAKES_OVERRIDES = (*(name for name, command in COMMANDS.items() if command.takes_config), 'import')


@dataclasses.dataclass(frozen=True)
class Request:
  """What a command line asks for: a command with all its flags and changes of the config, or a text to be shown."""
  command: str
  flags: Any = None
  overrides: tuple = ()
  help: str = ''


def read(argv, program='python main.py'):
  """The Request of a command line without the name of the program. ConfigError for whatever it does not mean."""
  values, words, overrides = _parse(argv)
  if values['version'].present:
    return Request('', help=f't5like {__version__}')
  wants_help = any(values[name].present for name in HELP) or words[:1] == ['help']
  words = words[1:] if words[:1] == ['help'] else words
  if wants_help:
    name = words[0] if words else ''
    if name and name not in COMMANDS:
      raise ConfigError(_no_command(name))
    return Request(name, help=command_help(name, program) if name else overview(program))
  name, config = _command(words, values['config'].value)
  _check_flags(name, values, overrides)
  chosen = {flag: _value(flag, values[flag].value) for flag in (*COMMANDS[name].flags, *EVERYWHERE)}
  if COMMANDS[name].takes_config:
    chosen['config'] = config
  return Request(name, _Chosen(chosen), tuple(overrides))


class _Chosen:
  """The flags of one command as attributes."""

  def __init__(self, values):
    vars(self).update(values)


# --- Reading ----------------------------------------------------------------------------------------


def _parse(argv):
  """(absl's flags by name, words that are no flags, ['model.num_layers=6', ..])."""
  values = _definitions()
  try:
    argv = values.read_flags_from_files(list(argv), force_gnu=True)
    argv, overrides = _take_overrides(argv)
    words = values(['main.py', *argv])[1:]
  except flags.UnrecognizedFlagError as e:
    raise ConfigError(_no_flag(e.flagname)) from e
  except flags.IllegalFlagValueError as e:
    raise ConfigError(_bad_value(str(e))) from e
  except (flags.Error, OSError, UnicodeDecodeError) as e:
    said = str(e).removeprefix('ERROR:: ')
    raise ConfigError(f'{said[:300]} (python main.py help lists commands and flags.)') from e
  return values, words, overrides


def _definitions():
  values = flags.FlagValues()
  for name, flag in FLAGS.items():
    default = list(flag.default) if flag.kind == 'list' else flag.default
    if flag.kind == 'yes':
      flags.DEFINE_bool(name, default, '', values)
    elif flag.kind == 'list':
      flags.DEFINE_list(name, default, '', values)
    elif flag.kind == 'texts':
      flags.DEFINE_multi_string(name, default, '', values)
    elif flag.kind == 'text':
      flags.DEFINE_string(name, default, '', values)
    else:
      parser = Whole() if flag.kind == 'whole' else Number()
      flags.DEFINE(parser, name, default, '', values)
  for name in (*HELP, 'version'):
    flags.DEFINE_bool(name, False, '', values)
  others = {flags.FLAGS[name].name for name in flags.FLAGS}  # absl.logging's, once it is imported
  for name in others - set(values):
    values[name] = flags.FLAGS[name]  # with its short name
  return values


def _take_overrides(argv):
  """(argv without changes of the config, ['model.num_layers=6', ..]); a value may be a word of its own."""
  rest, overrides, waiting = [], [], list(argv)
  while waiting:
    word = waiting.pop(0)
    plain = word.lstrip('-')
    dashes = len(word) - len(plain)
    if word == '--':
      rest += [word, *waiting]
      break
    if dashes not in (1, 2) or not plain.startswith(('config.', 'noconfig.')):
      rest.append(word)
      continue
    off = plain.startswith('noconfig.')
    key, equals, text = plain.partition('.')[2].partition('=')
    if off:
      overrides.append(_switched_off(key, equals))
    elif equals:
      overrides.append(f'{key}={text}')
    else:
      overrides.append(f'{key}{_value_of(key, waiting)}')
  return rest, overrides


def _switched_off(key, equals):
  if equals or not isinstance(DEFAULTS[key] if key in DEFAULTS else None, bool):
    raise ConfigError(f'--noconfig.{cut(key)}: only keys that are true or false are switched off so. Write '
                      f'--config.{cut(key)}=VALUE.')
  return f'{key}=false'


def _value_of(key, waiting):
  """'=VALUE' of a key whose value is the next word, which is taken from `waiting`; '=true' of one that is a switch."""
  following = waiting[0] if waiting else None
  if isinstance(DEFAULTS[key] if key in DEFAULTS else None, bool):
    if following is not None and parse(key, following) is not None:
      return f'={waiting.pop(0)}'
    return '=true'
  if following is None or following.startswith('--'):
    return ''  # config.load says that the value is missing
  return f'={waiting.pop(0)}'


def _command(words, config):
  """(command, config) of the words that are no flags: the command, a config file, or both in this order."""
  name, *extra = words or ['train']
  if name not in COMMANDS:
    if not _names_config(name):
      raise ConfigError(_no_command(name))
    name, extra = 'train', words
  if extra and COMMANDS[name].takes_config and config is None and _names_config(extra[0]):
    config, *extra = extra
  if extra:
    raise ConfigError(_no_word(name, extra))
  return name, config


def _names_config(word):
  from t5like import config as config_lib
  return '=' not in word and config_lib.find(word.partition(':')[0]) is not None


def _check_flags(name, values, overrides):
  """ConfigError for flags that the command does not have, and for values that they do not take."""
  takes = (*COMMANDS[name].flags, *EVERYWHERE)
  for flag in FLAGS:
    if not values[flag].present:
      continue
    if flag not in takes:
      raise ConfigError(_of_another_command(name, flag))
    problem = _out_of_range(flag, values[flag].value)
    if problem:
      raise ConfigError(problem)
  if overrides and name not in TAKES_OVERRIDES:
    raise ConfigError(f'--config.{cut(overrides[0])}: {name} takes its config from the run in --workdir, and changes '
                      f'none of its keys. --config.KEY=VALUE belongs to {either(TAKES_OVERRIDES)}.')


def _out_of_range(name, value):
  flag = FLAGS[name]
  if flag.kind == 'list' and not all(text.strip() for text in value):
    return f'--{name}={",".join(value)}: one of the names is empty. Write NAME,NAME without a comma at the end.'
  if flag.kind in ('text', 'list') and len(','.join([value] if isinstance(value, str) else value)) > LONGEST:
    return f'--{name}={cut(str(value))}: must have at most {LONGEST:,} characters.'
  if flag.kind in ('text', 'texts', 'list', 'yes') or flag.low <= value <= flag.high and value > flag.above:
    return ''
  limits = [f'at least {flag.low}'] if math.isfinite(flag.low) else []
  limits += [f'above {flag.above}'] if math.isfinite(flag.above) else []
  limits += [f'at most {flag.high}'] if math.isfinite(flag.high) else []
  return f'--{name}={value}: must be {" and ".join(limits)}.'


def _value(name, value):
  """A flag's value, as paths that are written with ~ or $VARIABLES are meant."""
  is_path = FLAGS[name].value in ('FILE', 'FOLDER') and name != 'config'
  return paths.check(f'--{name}', value) if is_path and value else value


# --- What is said of mistakes -----------------------------------------------------------------------


def _no_command(name):
  key, equals, _ = name.partition('=')
  more = suggestion(name, COMMANDS, ' Did you mean {}?')
  if equals and key in DEFAULTS:
    more = f' A key of the config is changed by --config.{cut(name)}.'
  elif name.endswith('.py') or '/' in name:
    more = ' Nor is there such a config file; --config=FILE says why.'
  return f'main.py {cut(name)}: no such command.{more} There are {", ".join(COMMANDS)}; python main.py help shows them.'


def _no_word(name, extra):
  key = extra[0].partition('=')[0]
  hint = f' Did you mean --config.{cut(extra[0])}?' if '=' in extra[0] and key in DEFAULTS else ''
  return (f'main.py {name} {cut(" ".join(extra))}: what follows the command must be flags, such as '
          f'--config=configs/decoder_tiny.py or --config.batch_size=16.{hint}')


def _no_flag(name):
  text = f'--{cut(name)}'
  if name in DEFAULTS:
    return f'{text}: keys of the config are written --config.{name}=VALUE.'
  near = nearest(name, [*FLAGS, 'help'])
  if near:
    return f'{text}: unknown flag. Did you mean --{near[0]}? python main.py help lists commands and flags.'
  key = unknown(name, text)
  if 'Did you mean' in key:
    keys = key.partition('Did you mean ')[2].rstrip('?')
    return f'{text}: unknown flag. Of the config there is {keys}, written --config.KEY=VALUE.'
  return f'{text}: unknown flag. python main.py help lists commands and flags.'


def _bad_value(said):
  """absl's message 'flag --limit=x: reason' as ours."""
  flag, _, _ = said.removeprefix('flag ').partition(':')
  flag = flag.removeprefix('--')
  name = flag.partition('=')[0]
  kind = FLAGS[name].kind if name in FLAGS else ''
  wants = dict(whole=Whole.syntactic_help, number=Number.syntactic_help, yes='true or false')
  return f'--{cut(flag)}: needs {wants[kind]}.' if kind in wants else f'{cut(said)}.'


def _of_another_command(name, flag):
  owners = [other for other, command in COMMANDS.items() if flag in command.flags]
  hint = suggestion(flag, COMMANDS[name].flags, ' Did you mean --{}?')
  return (f'--{flag} belongs to main.py {either(owners)}; {name} does not have it.{hint} '
          f'python main.py {name} --help lists its flags.')


# --- Help -------------------------------------------------------------------------------------------


def overview(program='python main.py'):
  """What there is to be called."""
  width = max(map(len, COMMANDS))
  lines = [f'{program} [COMMAND] [--flag=value ..] [--config.KEY=VALUE ..]', '',
           'Pre-trains transformers in JAX, evaluates them, and samples from them.', '']
  for name, command in COMMANDS.items():
    lines += textwrap.wrap(command.does, WIDTH, initial_indent=f'  {name:{width}}  ',
                           subsequent_indent=' ' * (width + 4))
  return '\n'.join([
      *lines, '', f'{program} COMMAND --help lists the flags of a command; {program} --version names this version.',
      f'{program} --config=configs/decoder_tiny.py --print_config lists the keys of a config; configs/base.py says',
      'what they mean. The first thing to run:', '', f'  {program} --config=configs/decoder_tiny.py'])


def command_help(name, program='python main.py'):
  """What a command does, an example, and its flags with their defaults."""
  command = COMMANDS[name]
  lines = [f'{program} {name} [--flag=value ..]' + ' [--config.KEY=VALUE ..]' * (name in TAKES_OVERRIDES), '',
           command.does, '', f'  {program} {name} {command.example}'.rstrip(), '', 'Flags:']
  for flag, text in {**command.flags, **EVERYWHERE}.items():
    lines += _flag_help(flag, text)
  return '\n'.join(lines)


def _flag_help(name, text):
  flag = FLAGS[name]
  value = {'whole': 'N', 'number': 'NUMBER', 'yes': ''}[flag.kind] if flag.kind in ('whole', 'number', 'yes') else (
      flag.value)
  written = f'--{name}={value}' if value else f'--[no]{name}'
  silent = flag.default is None or flag.default is False or flag.default in ('', ())
  default = '' if silent else f' Default: {flag.default}.'
  return textwrap.wrap(f'{text}{default}', WIDTH, initial_indent=f'  {written:28}  ', subsequent_indent=' ' * 32)
