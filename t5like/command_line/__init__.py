"""The command line: the parser, the texts of `--help`, and the messages about mistakes.

    python main.py [COMMAND] [--flag=value ..] [--config.key=value ..]

Flags are absl's: --flag=value or --flag value, one dash or two, --yes or --noyes for those that are on or off,
--flagfile. Nothing here imports JAX: help and mistakes take a fraction of a second.
"""
import dataclasses
import math
import textwrap
import types
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from t5like import __version__
from t5like.command_line.table import COMMANDS, EVERYWHERE, FLAGS, TAKES_OVERRIDES, Flag
from t5like.config.values import DEFAULTS, cut, either, parse, unknown
from t5like.errors import ConfigError
from t5like.files import paths
from t5like.nearest import nearest, suggestion
from t5like.objectives import lengths

HELP = ('help', 'h', '?', 'helpshort', 'helpfull')
WIDTH = 100
LONGEST = 4096  # characters of a flag, texts to continue aside


class Whole(flags.ArgumentParser):
  """Whole numbers as config keys take them: 12, 1_000, 250K."""
  syntactic_help = 'a whole number, such as 12, 1_000 or 250K'

  def parse(self, argument: str | int) -> int:
    value = lengths.whole_number(argument) if isinstance(argument, str) else argument
    if value is None or abs(value) >= 2 ** 63:
      raise ValueError(self.syntactic_help)
    return value


class Number(flags.ArgumentParser):
  """Finite floating-point numbers."""
  syntactic_help = 'a finite number, such as 0.1, 2 or 3e-4'

  def parse(self, argument: str | float) -> float:
    try:
      value = float(argument)
    except ValueError:
      value = math.nan
    if not math.isfinite(value):
      raise ValueError(self.syntactic_help)
    return value


@dataclasses.dataclass(frozen=True)
class Request:
  """What a command line asks for: a command with all its flags and changes of the config, or a text to be shown.

  Attributes:
    command: a key of COMMANDS, or ''.
    flags: the flags of the command, as attributes.
    overrides: changes of the config, such as 'model.num_layers=6'.
    help: the text to be shown in place of running the command, or ''.
  """
  command: str
  flags: Any = None
  overrides: tuple[str, ...] = ()
  help: str = ''


def read(argv: Sequence[str], program: str = 'python main.py') -> Request:
  """The Request of a command line without the name of the program. ConfigError for any word that it does not know."""
  values, words, overrides = _parse(argv)
  if values['version'].present:
    return Request('', help=f't5like {__version__}')
  wants_help = any(values[name].present for name in HELP)
  if words[:1] == ['help']:
    wants_help = True
    words = words[1:]
  if wants_help:
    return _help_request(words, program)
  name, config, runs = _command(words, values['config'].value)
  _check_flags(name, values, overrides)
  chosen = types.SimpleNamespace()
  for flag in (*COMMANDS[name].flags, *EVERYWHERE):
    setattr(chosen, flag, _value(flag, values[flag].value))
  if COMMANDS[name].takes_config:
    chosen.config = config
  if COMMANDS[name].takes_runs:
    chosen.runs = runs
  return Request(name, chosen, tuple(overrides))


def _help_request(words: list[str], program: str) -> Request:
  if not words:
    return Request('', help=overview(program))
  name = words[0]
  if name not in COMMANDS:
    raise ConfigError(_no_command(name))
  return Request(name, help=command_help(name, program))


# --- Reading ----------------------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[str], list[str]]:
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
    message = str(e).removeprefix('ERROR:: ')
    raise ConfigError(f'{message[:300]} (python main.py help lists commands and flags.)') from e
  return values, words, overrides


def _define_bool(name: str, flag: Flag, values: flags.FlagValues) -> None:
  flags.DEFINE_bool(name, flag.default, '', values)


def _define_list(name: str, flag: Flag, values: flags.FlagValues) -> None:
  flags.DEFINE_list(name, list(flag.default), '', values)


def _define_texts(name: str, flag: Flag, values: flags.FlagValues) -> None:
  flags.DEFINE_multi_string(name, flag.default, '', values)


def _define_text(name: str, flag: Flag, values: flags.FlagValues) -> None:
  flags.DEFINE_string(name, flag.default, '', values)


def _define_whole(name: str, flag: Flag, values: flags.FlagValues) -> None:
  flags.DEFINE(Whole(), name, flag.default, '', values)


def _define_number(name: str, flag: Flag, values: flags.FlagValues) -> None:
  flags.DEFINE(Number(), name, flag.default, '', values)


DEFINE: dict[str, Callable[[str, Flag, flags.FlagValues], None]] = {  # by Flag.kind
    'text': _define_text,
    'whole': _define_whole,
    'number': _define_number,
    'yes': _define_bool,
    'list': _define_list,
    'texts': _define_texts,
}


def _definitions() -> flags.FlagValues:
  values = flags.FlagValues()
  for name, flag in FLAGS.items():
    DEFINE[flag.kind](name, flag, values)
  for name in (*HELP, 'version'):
    flags.DEFINE_bool(name, False, '', values)
  others = {flags.FLAGS[name].name for name in flags.FLAGS}  # absl.logging's, once it is imported
  for name in others - set(values):
    values[name] = flags.FLAGS[name]  # with its short name
  return values


def _take_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """(argv without changes of the config, ['model.num_layers=6', ..]); a value may be a word of its own."""
  rest = []
  overrides = []
  waiting = list(argv)
  while waiting:
    word = waiting.pop(0)
    if word == '--':
      rest += [word, *waiting]
      break
    plain = word.lstrip('-')
    dashes = len(word) - len(plain)
    if dashes not in (1, 2) or not plain.startswith(('config.', 'noconfig.')):
      rest.append(word)
      continue
    section, _, setting = plain.partition('.')
    key, equals, text = setting.partition('=')
    if section == 'noconfig':
      overrides.append(_switched_off(key, equals))
    elif equals:
      overrides.append(f'{key}={text}')
    else:
      overrides.append(f'{key}{_value_of(key, waiting)}')
  return rest, overrides


def _is_switch(key: str) -> bool:
  """Whether a key of the config is true or false."""
  return key in DEFAULTS and isinstance(DEFAULTS[key], bool)


def _switched_off(key: str, equals: str) -> str:
  if equals or not _is_switch(key):
    raise ConfigError(f'--noconfig.{cut(key)}: only keys that are true or false are switched off so. Write '
                      f'--config.{cut(key)}=VALUE.')
  return f'{key}=false'


def _value_of(key: str, waiting: list[str]) -> str:
  """'=VALUE' of a key whose value is the next word, which is taken from `waiting`; '=true' of one that is a switch."""
  following = waiting[0] if waiting else None
  if _is_switch(key):
    if following is not None and parse(key, following) is not None:
      return f'={waiting.pop(0)}'
    return '=true'
  if following is None or following.startswith('--'):
    return ''  # config.load says that the value is missing
  return f'={waiting.pop(0)}'


def _command(words: list[str], config: str | None) -> tuple[str, str | None, list[str]]:
  """(command, config, folders of runs) of the words that are no flags: the command, and what may follow it."""
  name, *extra = words or ['train']
  if name not in COMMANDS:
    if not _names_config(name):
      raise ConfigError(_no_command(name))
    name = 'train'
    extra = words
  if extra and COMMANDS[name].takes_config and config is None and _names_config(extra[0]):
    config, *extra = extra
  runs: list[str] = []
  if COMMANDS[name].takes_runs:
    runs = extra
    extra = []
  if extra:
    raise ConfigError(_no_word(name, extra))
  return name, config, runs


def _names_config(word: str) -> bool:
  from t5like import config as config_lib
  return '=' not in word and config_lib.find(word.partition(':')[0]) is not None


def _check_flags(
    name: str,
    values: flags.FlagValues,
    overrides: list[str],
) -> None:
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
  _check_cluster(values)
  if overrides and name not in TAKES_OVERRIDES:
    raise ConfigError(f'--config.{cut(overrides[0])}: {name} takes its config from the run in --workdir, and changes '
                      f'none of its keys. --config.KEY=VALUE belongs to {either(TAKES_OVERRIDES)}.')


def _check_cluster(values: flags.FlagValues) -> None:
  """ConfigError for --coordinator, --num_processes and --process_id that do not go together."""
  coordinator = values['coordinator'].value
  count: Any = values['num_processes'].value
  number: Any = values['process_id'].value
  if not coordinator:
    for name, value, least in (('num_processes', count, 1), ('process_id', number, 0)):
      if value > least:
        raise ConfigError(f'--{name}={value}: has no effect without --coordinator=HOST:PORT, the address of process 0.')
    return
  host, _, port = coordinator.rpartition(':')
  is_address = host and port.isascii() and port.isdecimal() and len(port) <= 5
  if not is_address:
    raise ConfigError(f'--coordinator={cut(coordinator)}: must be HOST:PORT, such as 10.0.0.2:8476.')
  if number >= count:
    raise ConfigError(f'--num_processes={count} --process_id={number}: processes are numbered from 0 to the number of '
                      'them less one.')


def _out_of_range(name: str, value: Any) -> str:
  """What is wrong with a flag's value, '' if nothing is."""
  flag = FLAGS[name]
  if flag.kind == 'text':
    return _too_long(name, value, value)
  if flag.kind == 'list':
    joined = ','.join(value)
    if not all(text.strip() for text in value):
      return f'--{name}={joined}: one of the names is empty. Write NAME,NAME without a comma at the end.'
    return _too_long(name, value, joined)
  if flag.kind in ('whole', 'number'):
    return _beyond_limits(name, value)
  return ''


def _too_long(name: str, value: Any, text: str) -> str:
  if len(text) <= LONGEST:
    return ''
  return f'--{name}={cut(str(value))}: must have at most {LONGEST:,} characters.'


def _beyond_limits(name: str, value: float) -> str:
  flag = FLAGS[name]
  if flag.low <= value <= flag.high and value > flag.above:
    return ''
  limits = []
  for words, limit in (('at least', flag.low), ('above', flag.above), ('at most', flag.high)):
    if math.isfinite(limit):
      limits.append(f'{words} {limit}')
  return f'--{name}={value}: must be {" and ".join(limits)}.'


def _value(name: str, value: Any) -> Any:
  """A flag's value; paths with ~ and $VARIABLES replaced."""
  is_path = FLAGS[name].value in ('FILE', 'FOLDER') and name != 'config'
  if is_path and value:
    return paths.check(f'--{name}', value)
  return value


# --- Messages about mistakes ------------------------------------------------------------------------


def _no_command(name: str) -> str:
  key, equals, _ = name.partition('=')
  hint = suggestion(name, COMMANDS, ' Did you mean {}?')
  if equals and key in DEFAULTS:
    hint = f' A key of the config is changed by --config.{cut(name)}.'
  elif name.endswith('.py') or '/' in name:
    hint = ' Nor is there such a config file; --config=FILE says why.'
  return f'main.py {cut(name)}: no such command.{hint} There are {", ".join(COMMANDS)}; python main.py help shows them.'


def _no_word(name: str, extra: list[str]) -> str:
  key, equals, _ = extra[0].partition('=')
  hint = ''
  if equals and key in DEFAULTS:
    hint = f' Did you mean --config.{cut(extra[0])}?'
  return (f'main.py {name} {cut(" ".join(extra))}: what follows the command must be flags, such as '
          f'--config=configs/decoder_tiny.py or --config.batch_size=16.{hint}')


def _no_flag(name: str) -> str:
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


NEEDS = dict(whole=Whole.syntactic_help, number=Number.syntactic_help, yes='true or false')  # by Flag.kind


def _bad_value(message: str) -> str:
  """absl's message 'flag --limit=x: reason' as ours."""
  word, _, _ = message.removeprefix('flag ').partition(':')
  word = word.removeprefix('--')
  name, _, _ = word.partition('=')
  kind = FLAGS[name].kind if name in FLAGS else ''
  if kind not in NEEDS:
    return f'{cut(message)}.'
  return f'--{cut(word)}: needs {NEEDS[kind]}.'


def _of_another_command(name: str, flag: str) -> str:
  owners = [other for other, command in COMMANDS.items() if flag in command.flags]
  hint = suggestion(flag, COMMANDS[name].flags, ' Did you mean --{}?')
  return (f'--{flag} belongs to main.py {either(owners)}; {name} does not have it.{hint} '
          f'python main.py {name} --help lists its flags.')


# --- Help -------------------------------------------------------------------------------------------

PLACEHOLDERS = dict(whole='N', number='NUMBER', yes='')  # by Flag.kind; others have Flag.value


def overview(program: str = 'python main.py') -> str:
  """All commands in a line each, as `help` prints them."""
  width = max(map(len, COMMANDS))
  indent = ' ' * (width + 4)
  lines = [
      f'{program} [COMMAND] [--flag=value ..] [--config.KEY=VALUE ..]',
      '',
      'Pre-trains transformers in JAX, evaluates them, and samples from them.',
      '',
  ]
  for name, command in COMMANDS.items():
    lines += textwrap.wrap(command.does, WIDTH, initial_indent=f'  {name:{width}}  ', subsequent_indent=indent)
  lines += [
      '',
      f'{program} COMMAND --help lists the flags of a command; {program} --version names this version.',
      f'{program} --config=configs/decoder_tiny.py --print_config lists the keys of a config;',
      't5like/config/base.py says what they mean. The first thing to run:',
      '',
      f'  {program} --config=configs/decoder_tiny.py',
  ]
  return '\n'.join(lines)


def command_help(name: str, program: str = 'python main.py') -> str:
  """Description of a command, an example, and its flags with their defaults."""
  command = COMMANDS[name]
  usage = f'{program} {name} [--flag=value ..]'
  if name in TAKES_OVERRIDES:
    usage += ' [--config.KEY=VALUE ..]'
  example = f'  {program} {name} {command.example}'.rstrip()
  lines = [usage, '', command.does, '', example, '', 'Flags:']
  for flag, text in {**command.flags, **EVERYWHERE}.items():
    lines += _flag_help(flag, text)
  return '\n'.join(lines)


def _flag_help(name: str, text: str) -> list[str]:
  flag = FLAGS[name]
  value = PLACEHOLDERS.get(flag.kind, flag.value)
  written = f'--{name}={value}' if value else f'--[no]{name}'
  has_default = flag.default is not None and flag.default is not False and flag.default not in ('', ())
  if has_default:
    text = f'{text} Default: {flag.default}.'
  return textwrap.wrap(text, WIDTH, initial_indent=f'  {written:28}  ', subsequent_indent=' ' * 32)
