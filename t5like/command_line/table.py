"""Commands and their flags, as tables: the package parses and prints them, `commands.py` runs them."""
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
  takes_runs: bool = False  # folders of runs, as words after the command


FLAGS = {
    'config': Flag('text', value='FILE[:VARIANT]'),
    'workdir': Flag('text', value='FOLDER'),
    'print_config': Flag('yes', False),
    'debug': Flag('yes', False),
    'step': Flag('whole', 0, low=0),
    'ema': Flag('yes', False),
    'rows': Flag('whole', 2, low=1),
    'batch': Flag('text', value='FILE'),
    'row': Flag('whole', low=0),
    'topology': Flag('text', value='TPUS'),
    'search': Flag('yes', False),
    'fresh_head': Flag('yes', False),
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
    'tokens': Flag('whole', 128, low=1, high=2 ** 31 - 1),
    'temperature': Flag('number', 0.8, low=0),
    'top_k': Flag('whole', 40, low=0),
    'top_p': Flag('number', 1.0, above=0, high=1),
    'beams': Flag('whole', 1, low=1, high=1000),
    'alpha': Flag('number', 0.6, low=0, high=5),
    'seed': Flag('whole', 0, low=0, high=2 ** 32 - 1),
    'out': Flag('text', value='FOLDER'),
    'checkpoints': Flag('list', (), value='STEP,STEP..'),
    'weights': Flag('text', 'uniform', value='NAME'),
    'folder': Flag('text', value='FOLDER'),
    'compare': Flag('list', (), value='FOLDER,FOLDER..'),
    'only': Flag('list', (), value='NAME,NAME..'),
    'steps': Flag('whole', 10, low=1, high=1_000_000),
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
    coordinator='Address of process 0, for clusters whose processes do not find each other.',
    num_processes='With --coordinator: the number of processes.',
    process_id='With --coordinator: the number of this process, from 0.')
CHECKPOINT = 'The step of the checkpoint; 0: the newest.'
AVERAGED = 'Of the moving average of the parameters, which runs with optimizer.ema keep.'

COMMANDS = {
    'train': Command(
        does='Trains a model, or resumes the run in --workdir. The command when none is named.',
        example='--config=configs/decoder_tiny.py --config.stop.tokens=10M --workdir=runs/mine',
        flags=dict(
            OF_A_CONFIG,
            workdir='The folder of the run. Default: runs/CONFIG.',
            profile_steps='Trace these steps, such as 10:13, into WORKDIR/profile.',
            dump_xla='Write the compiled programs of the steps into this folder.',
            **CLUSTER),
        takes_config=True),
    'prepare': Command(
        does='Turns text into tokens, once. Training on one machine does this too.',
        example='--config=configs/decoder_tiny.py',
        flags=dict(
            OF_A_CONFIG,
            workdir='The folder of the run that will follow, to be checked too.'),
        takes_config=True),
    'inspect': Command(
        does='Shows the batch of any step, and where its text came from.',
        example='--config=configs/decoder_tiny.py --step=100 --rows=1',
        flags=dict(
            OF_A_CONFIG,
            workdir='The folder of the run, to be checked too.',
            step='Whose batch is shown, from 0.',
            rows='How many rows of it.',
            row='Only this row of it, counted from 0.',
            batch='A file of WORKDIR/bad_steps, in place of the batch of a step.'),
        takes_config=True),
    'preflight': Command(
        does='Compiles for TPUs without one: whether a run fits, how fast it is and what it costs.',
        example='--config=configs/decoder_1b.py --topology=v5e-64 --price=1.2',
        flags=dict(
            OF_A_CONFIG,
            workdir='The folder of the run that will follow, to be checked too.',
            topology='Which TPUs, such as v5e-256, 2xv5e-256 (two slices) or v5p:4x4x8.',
            search='Try meshes, layouts and remat, and show what is fastest.',
            full='Compile to the end, minutes instead of seconds.',
            json='Print all results as JSON, for programs.',
            price='Of a chip for an hour, to compute the cost.'),
        takes_config=True),
    'generate': Command(
        does='Continues, fills in or answers prompts.',
        example="--workdir=runs/decoder_tiny --prompt='def read(' --temperature=0.5",
        flags=dict(
            workdir=RUN,
            step=CHECKPOINT,
            ema=AVERAGED,
            prompt='Text to continue; may be given several times.',
            input='JSONL with a prompt on each line, to be answered in --output.',
            output='The file of answers to --input, as JSONL.',
            tokens='The longest answer, in tokens.',
            temperature='Of sampling; 0 takes the likeliest token each time.',
            top_k='Sample from the k likeliest tokens; 0: from all.',
            top_p='Sample from the fewest likeliest tokens that hold this probability.',
            beams='Above 1, beam search with this many beams; temperature has no effect then.',
            alpha='Length penalty of beam search (Wu et al. 2016); 0: none.',
            seed='Another seed gives other text.')),
    'evaluate': Command(
        does='Asks a trained model questions: built-in tasks, your own, or those of lm-evaluation-harness.',
        example='--workdir=runs/decoder_tiny --tasks=agreement,next_line --limit=8',
        flags=dict(
            workdir=RUN,
            step=CHECKPOINT,
            ema=AVERAGED,
            tasks='Built-in tasks, paths of task files, harness:NAME. Default: all that are built in.',
            shots='Worked examples before each question; -1: as many as the task says.',
            limit='At most this many questions of each task; 0: all.',
            harness_path='A folder with task files of lm-evaluation-harness.',
            output='JSON with the results. Default: WORKDIR/evaluation.json, with --ema evaluation_ema.json.',
            **CLUSTER)),
    'report': Command(
        does='Shows where the time of a run went, and writes a page with all its curves.',
        example='--workdir=runs/decoder_tiny',
        flags=dict(
            workdir=RUN,
            output='The page. Default: WORKDIR/report.html.',
            compare='Folders of further runs, whose curves are drawn beside those of this one.')),
    'average': Command(
        does='Averages checkpoints of a run into a run that every command reads.',
        example='--workdir=runs/decoder_tiny --out=runs/averaged --weights=sqrt',
        flags=dict(
            workdir=RUN,
            out='A new folder for the run.',
            ema=AVERAGED,
            checkpoints='Steps of the checkpoints. Default: all that the run has.',
            weights='uniform: the mean; linear, sqrt or cosine: like such a decay of the learning rate; ema.')),
    'compare': Command(
        does='Compares runs at equal tokens: differences over seeds with intervals, and where losses part.',
        example='runs/a-0 runs/a-1 runs/b-0 runs/b-1 --output=comparison.html',
        flags=dict(
            output='A page with the curves of all runs.',
            json='Print all results as JSON, for programs.'),
        takes_runs=True),
    'export': Command(
        does='Writes a trained model for transformers.',
        example='--workdir=runs/decoder_tiny --out=exported',
        flags=dict(
            workdir=RUN,
            ema=AVERAGED,
            out='A new folder.')),
    'import': Command(
        does='Makes a run from a Hugging Face model.',
        example='--folder=some/bert --workdir=runs/bert',
        flags=dict(
            workdir='A new folder for the run.',
            folder='The model: config.json, *.safetensors and a tokenizer. --config.KEY=VALUE changes its config.',
            fresh_head='An encoder without a head for masked tokens, as of sentences, gets a new one.')),
    'replay': Command(
        does='Repeats steps from the newest checkpoint and compares every bit.',
        example='--workdir=runs/decoder_tiny --steps=10',
        flags=dict(
            workdir=RUN,
            steps='How many.',
            **CLUSTER)),
    'selftest': Command(
        does='Checks this machine and these versions: resuming, meshes, hosts, packing and more.',
        example='',
        flags=dict(
            only='Some of its checks.')),
}
TAKES_OVERRIDES = (*(name for name, command in COMMANDS.items() if command.takes_config), 'import')
