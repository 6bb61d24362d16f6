"""Commands and their flags, as tables: `command_line.py` parses and prints them, `commands.py` runs them."""
import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of one or more commands.

  Attributes:
    kind: of its value, a key of `command_line.DEFINE`.
    default: its value where the command line does not have it.
    value: the placeholder in help, such as FOLDER.
    low: the least value that it takes.
    high: the greatest one.
    above: values must be greater than this.
  """
  kind: str
  default: Any = None
  value: str = ''
  low: float = -math.inf
  high: float = math.inf
  above: float = -math.inf


@dataclasses.dataclass(frozen=True)
class Command:
  """What a command does, in a line and in an example, and its flags: {name: its meaning}."""
  does: str
  example: str
  flags: dict[str, str]
  takes_config: bool = False


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
