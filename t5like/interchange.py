"""Whole runs to Hugging Face folders and back: what `main.py export` and `main.py import` do."""
import ast
import importlib.util
import keyword
import pathlib
import tempfile

import jax
import jax.numpy as jnp
from etils import epath

from t5like import (
  choices,
  config as config_lib,
  guard,
  huggingface,
  huggingface_weights,
  loaded,
  models,
  sharding,
  workdir as workdir_lib,
)
from t5like.checkpoint import Checkpoints
from t5like.data.vocabulary_check import check_vocabulary
from t5like.errors import ConfigError
from t5like.objectives import spans
from t5like.objectives.prompts import STYLES


def check_export(config, out):
  """ConfigError for a model that no family of Hugging Face computes, or a folder that holds files, before weights are
  read."""
  folder = epath.Path(out)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ConfigError(f'--out={out} holds files already, or is one. Give a new or an empty folder.')
  huggingface_weights.library()
  if importlib.util.find_spec('tokenizers') is None:
    raise ConfigError("Writing a tokenizer needs the package tokenizers; run: pip install -e '.[hf]'")
  model = config_lib.resolve(config).model.to_dict()
  huggingface.family_of(dict(model, lora_rank=0, vocab_size=model['vocab_size'] or 128))


def export_run(workdir, out):
  """Writes the newest checkpoint of a run to the new folder `out`; returns notes for people, [text]."""
  run = loaded.load(workdir)
  huggingface.check_parameters(run.config.model.to_dict(), run.model.parameters)
  notes = huggingface.write(out, run.config.model.to_dict(), run.params, run.vocabulary,
                            style=run.style, length=run.config.data.seq_len)
  if STYLES[run.style].sees_itself and run.model.config.prefix_mask:
    notes.append('this decoder sees prompts in both directions, those of transformers only what came before: its '
                 'answers will differ. Train with model.prefix_mask=False for answers that are the same.')
  return notes


def import_folder(folder, workdir, overrides=()):
  """Makes a workdir that `generate` and config.init_from take of a folder; returns its config.

  `overrides`: changes of the config, 'model.vocab_size=50304' and the like. The config lies in the workdir
  as config.py too, to begin a training run with. The workdir is there whole or not at all. ConfigError when there are
  files in it already, or where neither the folder nor `overrides` say which special tokens the model needs.
  """
  workdir = epath.Path(workdir)
  if (workdir / 'config.json').exists():
    raise ConfigError(f'--workdir={workdir} holds a run already. Give another.')
  found = huggingface.find_tokenizer(folder, config_lib.special_of(overrides))
  if found is None:
    raise ConfigError(f'--folder={folder} has neither spiece.model, tokenizer.model nor tokenizer.json. Save its '
                      'tokenizer there first: AutoTokenizer.from_pretrained(...).save_pretrained(...).')
  vocabulary = found.vocabulary
  text = _config_text(folder, found)
  with tempfile.TemporaryDirectory() as temporary:
    path = pathlib.Path(temporary) / 'config.py'
    path.write_text(text, encoding='utf-8')
    config = config_lib.load(path, overrides)
  check_vocabulary(config, vocabulary)
  with workdir_lib.whole_folder(workdir) as new:
    _save(config, vocabulary, new)
    workdir_lib.write_vocabulary(new, vocabulary)
    workdir_lib.write_file(new / 'config.py', text)
    workdir_lib.write_config(new, config)
  return config


def _save(config, vocabulary, workdir):
  """Leaves a checkpoint of step 0 with the weights of config.init_from in a workdir."""
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
  with jax.set_mesh(mesh):
    sized = models.with_vocabulary(config, vocabulary)
    model, _ = models.build_model(sized)
    abstract = sharding.abstract(lambda: model.init(jax.random.key(0)), mesh)
    # Orbax wants something in all parts; no run goes on from here, one begins with config.init_from.
    state = dict(params=huggingface.initial(sized, abstract, vocabulary), opt_state=dict(none=jnp.int32(0)),
                 step=jnp.int32(0), guard=guard.start())
    meta = dict(step=0, tokens=0, examples_seen=0, config=config_lib.to_json(config), vocabulary=vocabulary.fingerprint)
    with Checkpoints(workdir) as checkpoints:
      checkpoints.save(0, state, meta)
      checkpoints.wait()


def _config_text(folder, found):
  """Source of a config file for a model in a folder: its sizes, and an objective of its kind.

  All that comes from the folder, its name too, stands in literals, nowhere else: the source is executed.
  """
  model, vocabulary = huggingface.model_of(folder), found.vocabulary
  seq_len = model['max_positions'] - choices.POSITIONS[model['position']].first_row
  sections = dict(vocabulary=found.spec, model=dict(model, dtype='float32'), data=dict(seq_len=seq_len))
  architecture = choices.ARCHITECTURES[model['name']]
  if architecture.has_encoder:
    enough = vocabulary.num_sentinels >= spans.span_counts(seq_len, 0.15, 3.0)[1]
    sections['objective'] = dict(name='span_corruption' if enough else 'prefix_lm')
  elif architecture.causal:
    sections['data']['document_mask'] = found.begins and vocabulary.eos_id is not None
  else:
    sections['objective'] = dict(name='masked_lm', cls_sep=None not in (vocabulary.cls_id, vocabulary.sep_id))
  if found.spec['special'].get('eos') == '':  # it has none, as was said
    sections['data']['append_eos'] = False
  sections['sample'] = dict(prompts=())
  updates = [f'  c.{name}.update({_arguments(values)})' for name, values in sections.items()]
  return '\n'.join([
      '"""An imported model: choose data and stop.tokens before training it on."""',
      'from configs.base import base', '', '', "def get_config(arg=''):", '  c = base()',
      f'  c.init_from = {_literal(str(epath.Path(folder).resolve()))}', *updates,
      f'  c.stop.tokens = 1000 * c.batch_size * {_literal(seq_len)}', '  return c', ''])


def _arguments(values):
  wrong = [key for key in values if not key.isidentifier() or keyword.iskeyword(key)]
  if wrong:
    raise ConfigError(f'{wrong[0]!r} cannot be a key of a config.')
  return ', '.join(f'{key}={_literal(value)}' for key, value in values.items())


def _literal(value):
  """Python source of a plain value, in ASCII; ConfigError for one that no literal stands for."""
  source = ascii(value)
  try:
    if ast.literal_eval(source) == value:
      return source
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    pass
  raise ConfigError(f'{source[:80]} cannot be written into a config.')
