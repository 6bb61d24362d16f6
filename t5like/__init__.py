"""t5like: pre-training of transformers in JAX, for TPU pods and for laptops.

    import t5like

    t5like.train('configs/decoder_tiny.py', 'runs/decoder_tiny', ['stop.tokens=500k'])
    model = t5like.load('runs/decoder_tiny')
    print(t5like.generate(model, ['def read('], temperature=0.5)[0])
    print(t5like.evaluate(model, ['agreement'])['agreement']['accuracy'])

These four are what programs and notebooks need; `python main.py` does the same and more. What goes wrong is a Failure
of `t5like.errors`, with a paragraph that says what would work. Importing t5like does not import JAX yet.
"""
from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
  import pathlib
  from collections.abc import Callable, Iterable, Sequence
  from typing import Any

  from t5like.config_type import Config
  from t5like.decoding.trained_model import Loaded

__version__ = '0.2.0'
__all__ = ['evaluate', 'generate', 'load', 'train']


def train(
    config: str | pathlib.Path | Config,
    workdir: str | pathlib.Path,
    overrides: Sequence[str] = (),
    devices: Sequence[Any] | None = None,
    watch: Callable[[int, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
  """Trains until a target of `config.stop` is reached, or resumes where a run in `workdir` was interrupted.

  Args:
    config: path of a config file, 'configs/decoder_tiny.py' or 'FILE:VARIANT', or a config as `t5like.config.base()`
      returns it, changed.
    workdir: the folder of the run, local or gs://; what `load` takes. Checkpoints, metrics.jsonl and so on.
    overrides: changes of a config file, such as ['batch_size=16', 'stop.tokens=10M'].
    devices: those to use; all by default.
    watch: called with (step, {name: number}) whenever numbers are written to metrics.jsonl, for live plots.

  Returns:
    {reason, step, tokens, validation: {nll (nats per token), perplexity, accuracy, ...}, tasks}; at once if the
    target has been reached before.

  Raises:
    ConfigError, DataError, CheckpointError, NumericsError; Preempted after SIGTERM, and Interrupted, which is a
    KeyboardInterrupt, after Ctrl-C or the interrupt of a notebook's cell, with the state saved.
  """
  import pathlib

  from t5like import config as config_lib, hardware
  from t5like.files import paths
  from t5like.storage import workdir as workdir_lib
  hardware.prepare_process()
  workdir = paths.expand(str(workdir))
  if isinstance(config, (str, pathlib.Path)):
    config = config_lib.load(config, overrides)
  else:
    config_lib.validate(config)
  for key, old, new in workdir_lib.check_config(workdir, config):
    print(f'{key} was {old!r} in this run so far, and is {new!r} from now on.')
  result = workdir_lib.finished(workdir, config)
  if result:
    del result['stop']
    return result
  from t5like.training import loop, preconditions
  preconditions.check(config, workdir, create=True)
  return loop.train(config, str(workdir), pathlib.Path(str(workdir)).name, devices, watch=watch)


def load(
    workdir: str | pathlib.Path,
    step: int | None = None,
    devices: Sequence[Any] | None = None,
    ema: bool = False,
) -> Loaded:
  """A trained model, ready to use.

  Args:
    workdir: of a run, local or gs://. (`python main.py import` makes one from a Hugging Face model.)
    step: of the checkpoint; the newest by default.
    devices: over which parameters and rows are spread; one of this machine by default.
    ema: the moving average of the parameters (optimizer.ema) instead of them.

  Returns:
    A `t5like.decoding.trained_model.Loaded` with `config`, `mesh`, `model`, `params`, `vocabulary`, `step`: give it to
    `generate` and `evaluate`, or call `model.apply(params, batch)` under `jax.set_mesh(mesh)` for logits [B, T, V].
    Adapters (LoRA) are merged into the weights.

  Raises:
    ConfigError if there is no run, CheckpointError if it has no such checkpoint or none that can be read.
  """
  from t5like import hardware
  from t5like.files import paths
  hardware.prepare_process()
  from t5like.decoding import trained_model
  return trained_model.load(paths.expand(str(workdir)), step, devices, ema)


def generate(
    model: Loaded | str | pathlib.Path,
    prompts: Iterable[str],
    tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 40,
    top_p: float = 1.0,
    seed: int = 0,
    beams: int = 1,
    alpha: float = 0.6,
) -> list[str]:
  """Answers to prompts: a decoder continues them, an encoder fills in `<mask>`, an encoder-decoder answers.

  Args:
    model: what `load` returned, or a workdir.
    prompts: texts; a decoder can begin with ''. `<extra_id_0>` and so on are filled in by models of spans.
    tokens: of each answer, at most.
    temperature: of sampling; 0 takes the likeliest token each time.
    top_k: sample from the k likeliest tokens; 0: from all.
    top_p: sample from the fewest likeliest tokens that hold this probability.
    seed: others give other samples.
    beams: above 1, beam search with this number of beams.
    alpha: of its length penalty ((5 + length) / 6) ** alpha (Wu et al. 2016).

  Raises:
    ConfigError for prompts that do not fit the model.
  """
  return _loaded(model).generate(
      [*prompts],
      tokens=tokens,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      seed=seed,
      beams=beams,
      alpha=alpha,
  )


def _ignore(line: str) -> None:
  """Reports nothing."""


def evaluate(
    model: Loaded | str | pathlib.Path,
    tasks: str | Sequence[str] = (),
    shots: int = -1,
    limit: int = 0,
    harness_path: str | None = None,
    say: Callable[[str], None] = _ignore,
) -> dict[str, dict[str, float]]:
  """{task: {metric: number}} of a model, zero-shot or with worked examples.

  Args:
    model: what `load` returned, or a workdir.
    tasks: names of built-in tasks, paths of task files (docs/evaluate.md), 'harness:NAME' for those of
      EleutherAI's lm-evaluation-harness; by default all that are built in.
    shots: worked examples before each question; -1: as many as the task says.
    limit: of questions of each task; 0: all.
    harness_path: a folder with more of the harness's tasks.
    say: called with a line for each task as it is done.

  Raises:
    ConfigError for tasks that do not exist, before a model is loaded. Where some of several tasks fail, the others are
    asked, and then t5like.evals.evaluate.TasksFailed has their `results` and the `errors`.
  """
  from t5like.evals import evaluate as evals, plan
  if isinstance(tasks, str):
    tasks = [tasks]
  planned = plan.make(tasks, shots, limit, harness_path)
  run = _loaded(model)
  subject = evals.Subject(run.model, run.params, run.vocabulary, run.config, run.mesh)
  results, errors = planned.run(subject, say)
  return evals.finished(results, errors)


def _loaded(model: Any) -> Loaded:
  if hasattr(model, 'params'):
    return model
  return load(model)
