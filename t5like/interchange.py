"""Whole runs to Hugging Face folders and back: what `main.py export` and `main.py import` do."""
import pathlib
import tempfile

import jax
import jax.numpy as jnp
from etils import epath

from t5like import (
  build,
  config as config_lib,
  guard,
  huggingface,
  loaded,
  sharding,
  workdir as workdir_lib,
)
from t5like.checkpoint import Checkpoints
from t5like.errors import ConfigError


def check_export(config, out):
  """ConfigError for a model that no family of Hugging Face computes, or a folder that holds files, before weights are
  read."""
  folder = epath.Path(out)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ConfigError(f'--out={out} holds files already, or is one. Give a new or an empty folder.')
  model = config_lib.resolve(config).model.to_dict()
  huggingface.family_of(dict(model, lora_rank=0, vocab_size=model['vocab_size'] or 128))


def export_run(workdir, out):
  """Writes the newest checkpoint of a run to the new folder `out`; returns notes for people, [text]."""
  run = loaded.load(workdir)
  notes = huggingface.write(out, run.config.model.to_dict(), run.params, run.vocabulary,
                            style=run.style, length=run.config.data.seq_len)
  if run.style in ('prefix', 'pair') and run.model.config.prefix_mask:
    notes.append('this decoder sees prompts in both directions, those of transformers only what came before: its '
                 'answers will differ. Train with model.prefix_mask=False for answers that are the same.')
  return notes


def import_folder(folder, workdir, overrides=()):
  """Makes a workdir that `generate` and config.init_from take of a folder; returns its config.

  `overrides`: changes of the config, 'model.vocab_size=50304' and the like. The config lies in the workdir
  as config.py too, to begin a training run with. ConfigError when there is a run in the workdir already.
  """
  workdir = epath.Path(workdir)
  if (workdir / 'config.json').exists():
    raise ConfigError(f'--workdir={workdir} holds a run already. Give another.')
  spec, vocabulary = huggingface.find_vocabulary(folder)
  if vocabulary is None:
    raise ConfigError(f'--folder={folder} has neither spiece.model, tokenizer.model nor tokenizer.json. Save its '
                      'tokenizer there first: AutoTokenizer.from_pretrained(...).save_pretrained(...).')
  text = _config_text(folder, spec, vocabulary)
  with tempfile.TemporaryDirectory() as temporary:
    path = pathlib.Path(temporary) / 'config.py'
    path.write_text(text)
    config = config_lib.load(path, overrides)
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
  with jax.set_mesh(mesh):
    sized = build.with_vocabulary(config, vocabulary)
    model, _ = build.build_model(sized)
    abstract = sharding.abstract(lambda: model.init(jax.random.key(0)), mesh)
    # Orbax wants something in all parts; no run goes on from here, one begins with config.init_from.
    state = dict(params=huggingface.initial(sized, abstract, vocabulary), opt_state=dict(none=jnp.int32(0)),
                 step=jnp.int32(0), guard=guard.start())
    meta = dict(step=0, tokens=0, examples_seen=0, config=config_lib.to_json(config), vocabulary=vocabulary.fingerprint)
    with Checkpoints(workdir) as checkpoints:
      checkpoints.save(0, state, meta)
      checkpoints.wait()
  workdir_lib.write_vocabulary(workdir, vocabulary)
  workdir_lib.write_config(workdir, config)
  (workdir / 'config.py').write_text(text)
  return config


def _config_text(folder, spec, vocabulary):
  """Source of a config file for a model in a folder: its sizes, and an objective of its kind."""
  model, begins = huggingface.model_of(folder), huggingface.begins_with_zero(folder)
  seq_len = model['max_positions'] - 2 * (model['position'] == 'learned_from_2')
  sections = dict(vocabulary=spec, model=dict(model, dtype='float32'), data=dict(seq_len=seq_len))
  if model['name'] == 'decoder':
    sections['data']['document_mask'] = begins and vocabulary.eos_id is not None
  elif model['name'] == 'encoder':
    sections['objective'] = dict(name='masked_lm', cls_sep=None not in (vocabulary.cls_id, vocabulary.eos_id))
  else:
    sections['objective'] = dict(name='span_corruption')
  sections['sample'] = dict(prompts=())
  arguments = lambda values: ', '.join(f'{key}={value!r}' for key, value in values.items())
  lines = [f'  c.{name}.update({arguments(values)})' for name, values in sections.items()]
  return '\n'.join([
      f'"""The model in {folder}, imported: choose data and stop.tokens before training it on."""',
      'from configs.base import base', '', '', "def get_config(arg=''):", '  c = base()',
      f'  c.init_from = {str(epath.Path(folder).resolve())!r}', *lines,
      f'  c.stop.tokens = 1000 * c.batch_size * {seq_len}', '  return c', ''])
