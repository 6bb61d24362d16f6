"""Whole runs to Hugging Face folders and back: what `main.py export` and `main.py import` do."""
import ast
import importlib.util
import keyword
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from t5like import choices, config as config_lib, sharding
from t5like.config_type import Config
from t5like.decoding import trained_model
from t5like.errors import ConfigError
from t5like.huggingface import folder_tokenizers, model_config, model_folders, model_weights, weight_table
from t5like.model import models
from t5like.objectives import spans
from t5like.objectives.prompts import STYLES
from t5like.optim import guard
from t5like.storage import workdir as workdir_lib
from t5like.storage.checkpoint import Checkpoints
from t5like.vocabulary.kinds import Vocabulary
from t5like.vocabulary.requirements import check_vocabulary

CORRUPTION, MEAN_SPAN = 0.15, 3.0  # of span corruption, as T5 was trained


def check_export(config: Config, out: str) -> None:
  """ConfigError for a model that no family of transformers computes, or a folder that holds files.

  Before weights are read; `config` is that of the run, `out` the folder to be written.
  """
  folder = epath.Path(out)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ConfigError(f'--out={out} holds files already, or is one. Give a new or an empty folder.')
  model_weights.library()
  if importlib.util.find_spec('tokenizers') is None:
    raise ConfigError("Writing a tokenizer needs the package tokenizers; run: pip install -e '.[hf]'")
  model = config_lib.resolve(config).model.to_dict()
  # Adapters are merged before export; any size will do for a vocabulary that is not known yet.
  model.update(lora_rank=0, vocab_size=model['vocab_size'] or 128)
  model_config.family_of(model)


def export_run(workdir: str, out: str, ema: bool = False) -> list[str]:
  """Writes the newest checkpoint of a run, or its moving average, to the new folder `out`; returns notes for people."""
  run = trained_model.load(workdir, ema=ema)
  model = run.config.model.to_dict()
  weight_table.check_parameters(weight_table.family_of_any(model), model, run.model.parameters)
  notes = model_folders.write(out, model, run.params, run.vocabulary, style=run.style, length=run.config.data.seq_len)
  if STYLES[run.style].sees_itself and run.model.config.prefix_mask:
    notes.append('this decoder sees prompts in both directions, those of transformers only what came before: its '
                 'answers will differ. Train with model.prefix_mask=False for answers that are the same.')
  return notes


def import_folder(folder: str, workdir: Any, overrides: Sequence[str] = (), fresh_head: bool = False) -> Any:
  """Makes a workdir from a Hugging Face folder, for `generate` and config.init_from; returns its config.

  Args:
    folder: with config.json, *.safetensors and a tokenizer.
    workdir: a new folder, which is there whole or not at all. It also holds the config as config.py, to begin a
      training run with.
    overrides: changes of the config, 'model.vocab_size=50304' and the like.
    fresh_head: an encoder that lacks the head that predicts masked tokens, such as a sentence encoder, gets a new one.
      Its config.py begins with the workdir then, which has it.

  Raises:
    ConfigError: when there are files in the workdir already, or where neither the folder nor `overrides` say which
      special tokens the model needs.
  """
  workdir = epath.Path(workdir)
  if (workdir / 'config.json').exists():
    raise ConfigError(f'--workdir={workdir} holds a run already. Give another.')
  tokenizer = folder_tokenizers.find_tokenizer(folder, config_lib.special_of(overrides))
  if tokenizer is None:
    raise ConfigError(f'--folder={folder} has neither spiece.model, tokenizer.model nor tokenizer.json. Save its '
                      'tokenizer there first: AutoTokenizer.from_pretrained(...).save_pretrained(...).')
  model = model_folders.model_of(folder, fresh_head)
  begins_with = epath.Path(folder)
  if fresh_head:
    begins_with = workdir
  text = _config_text(begins_with, model, tokenizer)
  config = _load_text(text, overrides)
  check_vocabulary(config, tokenizer.vocabulary)
  with workdir_lib.whole_folder(workdir) as new:
    _save(config, folder, tokenizer.vocabulary, new, fresh_head)
    workdir_lib.write_vocabulary(new, tokenizer.vocabulary)
    workdir_lib.write_file(new / 'config.py', text)
    workdir_lib.write_config(new, config)
  return config


def _load_text(text: str, overrides: Sequence[str]) -> Any:
  """The config that the source of a config file makes."""
  with tempfile.TemporaryDirectory() as temporary:
    path = pathlib.Path(temporary) / 'config.py'
    path.write_text(text, encoding='utf-8')
    return config_lib.load(path, overrides)


def _save(config: Config, folder: str, vocabulary: Vocabulary, workdir: Any, fresh_head: bool) -> None:
  """Leaves a checkpoint of step 0 with the weights of a Hugging Face folder in a workdir."""
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
  with jax.set_mesh(mesh):
    sized = models.with_vocabulary(config, vocabulary)
    sized.init_from = str(epath.Path(folder).resolve())
    model, _ = models.build_model(sized)
    abstract = sharding.abstract(lambda: model.init(jax.random.key(0)), mesh)
    # Orbax needs a value in every part. No run resumes from this checkpoint; one begins with config.init_from.
    state = dict(
        params=model_folders.initial(sized, abstract, vocabulary, fresh_head=fresh_head),
        opt_state=dict(none=jnp.int32(0)),
        step=jnp.int32(0),
        guard=guard.start())
    meta = dict(
        step=0,
        tokens=0,
        examples_seen=0,
        config=config_lib.to_json(config),
        vocabulary=vocabulary.fingerprint)
    with Checkpoints(workdir) as checkpoints:
      checkpoints.save(0, state, meta)
      checkpoints.wait()


def _config_text(begins_with: Any, model: dict[str, Any], tokenizer: folder_tokenizers.FolderTokenizer) -> str:
  """Source of a config file for a model: its sizes, an objective of its kind, and the folder to begin with.

  Everything that comes from the folder, its name too, stands in literals, nowhere else: the source is executed.
  """
  seq_len = model['max_positions'] - choices.POSITIONS[model['position']].first_row
  lines = [
      '"""An imported model: choose data and stop.tokens before training it on."""',
      'from t5like.config import base',
      '',
      '',
      "def get_config(arg=''):",
      '  c = base()',
      f'  c.init_from = {_literal(str(begins_with.resolve()))}',
  ]
  for name, values in _sections(model, tokenizer, seq_len).items():
    lines.append(f'  c.{name}.update({_arguments(values)})')
  lines += [
      f'  c.stop.tokens = 1000 * c.batch_size * {_literal(seq_len)}',
      '  return c',
      '',
  ]
  return '\n'.join(lines)


def _sections(
    model: dict[str, Any],
    tokenizer: folder_tokenizers.FolderTokenizer,
    seq_len: int,
) -> dict[str, dict[str, Any]]:
  """{section of the config: {key: value}} of an imported model."""
  vocabulary = tokenizer.vocabulary
  data: dict[str, Any] = dict(seq_len=seq_len)
  sections = dict(vocabulary=tokenizer.spec, model=dict(model, dtype='float32'), data=data)
  architecture = choices.ARCHITECTURES[model['name']]
  if architecture.has_encoder:
    sections['objective'] = _span_corruption(vocabulary, seq_len)
  elif architecture.causal:
    data['document_mask'] = tokenizer.begins and vocabulary.eos_id is not None
  else:
    sections['objective'] = _masked_lm(vocabulary)
  if tokenizer.spec['special'].get('eos') == '':  # it has no end of text, by a choice of the user
    data['append_eos'] = False
  sections['sample'] = dict(prompts=())
  return sections


def _masked_lm(vocabulary: Vocabulary) -> dict[str, Any]:
  has_both = vocabulary.cls_id is not None and vocabulary.sep_id is not None
  return dict(name='masked_lm', cls_sep=has_both)


def _span_corruption(vocabulary: Vocabulary, seq_len: int) -> dict[str, Any]:
  """Span corruption where there is a sentinel for every span, else a prefix language model."""
  _, most_spans = spans.span_counts(seq_len, CORRUPTION, MEAN_SPAN)
  enough = vocabulary.num_sentinels >= most_spans
  return dict(name='span_corruption' if enough else 'prefix_lm')


def _arguments(values: dict[str, Any]) -> str:
  """'a=1, b=2', as Python source. ConfigError for a key that is no name."""
  arguments = []
  for key, value in values.items():
    if not key.isidentifier() or keyword.iskeyword(key):
      raise ConfigError(f'{key!r} cannot be a key of a config.')
    arguments.append(f'{key}={_literal(value)}')
  return ', '.join(arguments)


def _literal(value: Any) -> str:
  """Python source of a plain value, in ASCII; ConfigError for one that no literal stands for."""
  source = ascii(value)
  try:
    if ast.literal_eval(source) == value:
      return source
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    pass
  raise ConfigError(f'{source[:80]} cannot be written into a config.')
