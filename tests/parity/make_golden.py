"""Writes tests/golden/huggingface.npz: what transformers computes of the models in `cases.py`.

    pip install -e '.[parity]' && python -m tests.parity.make_golden

For each: its config.json and the names and shapes of its weights as save_pretrained writes them, tokens,
and logits. Weights themselves are made of a seed wherever they are needed.
"""
import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.parity import cases

PATH = pathlib.Path(__file__).parent.parent / 'golden' / 'huggingface.npz'


def build(name, seed=0):
  """transformers' model of a case, its weights made of a seed."""
  config, model, arguments = cases.CASES[name]
  torch.manual_seed(0)
  model = getattr(transformers, model)(getattr(transformers, f'{config}Config')(**arguments)).eval()
  if name in cases.SEPARATE:
    return _by_files(model, seed)
  tied = set(model.all_tied_weights_keys)
  if name in cases.UNTIED:  # transformers ties until a file says otherwise
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    tied.discard('lm_head.weight')
  shapes = {key: tuple(x.shape) for key, x in model.state_dict().items() if key not in tied}
  made = {key: torch.from_numpy(x) for key, x in cases.weights(shapes, seed).items()}
  with torch.no_grad():
    for key, x in model.state_dict().items():
      if key in made:
        x.copy_(made[key])
  return model


def _by_files(model, seed):
  """The model, its weights made by the names that files have."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    path = pathlib.Path(folder) / 'model.safetensors'
    with safe_open(path, framework='numpy') as f:
      shapes = {key: tuple(f.get_slice(key).get_shape()) for key in f.keys()}
    save_file(cases.weights(shapes, seed), path, metadata=dict(format='pt'))
    return type(model).from_pretrained(folder).eval()


def theirs(model, inputs, decoder_inputs=None, mask=None):
  """transformers' logits, numpy."""
  given = dict(input_ids=torch.from_numpy(inputs).long())
  if mask is not None:
    given['attention_mask'] = torch.from_numpy(mask).long()
  if decoder_inputs is not None:
    given['decoder_input_ids'] = torch.from_numpy(decoder_inputs).long()
  with torch.no_grad():
    return model(**given).logits.numpy()


def main():
  arrays, about = {}, {}
  for name in cases.CASES:
    model = build(name)
    with tempfile.TemporaryDirectory() as folder:
      model.save_pretrained(folder)
      config = json.loads((pathlib.Path(folder) / 'config.json').read_text())
      with safe_open(pathlib.Path(folder) / 'model.safetensors', framework='numpy') as f:
        shapes = {key: f.get_slice(key).get_shape() for key in f.keys()}
    inputs, decoder_inputs = cases.tokens(2, 9), cases.tokens(2, 7, seed=2)
    paired = (decoder_inputs,) if cases.is_paired(name) else ()
    arrays[name] = theirs(model, inputs, *paired)
    # What another seed's weights would give is far away, so agreement is not by chance.
    assert np.abs(arrays[name] - theirs(build(name, 1), inputs, *paired)).max() > 0.1
    about[name] = dict(config=config, shapes=shapes)
  about['versions'] = dict(transformers=transformers.__version__, torch=torch.__version__)
  np.savez_compressed(PATH, about=json.dumps(about), **arrays)
  print(PATH, PATH.stat().st_size)


if __name__ == '__main__':
  main()
