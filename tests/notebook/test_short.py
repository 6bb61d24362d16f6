"""The short notebooks run from top to bottom; one of them is interrupted in the middle, and resumes."""
import pytest

from tests import tiny
from tests.conftest import ROOT
from tests.notebook import interrupts

pytestmark = pytest.mark.notebook


def read(name, folder):
  """A notebook, to be executed in a folder that looks like a checkout."""
  import nbformat
  for part in ('configs', 't5like', 'main.py', 'notebooks'):
    if not (folder / part).exists():
      (folder / part).symlink_to(ROOT / part)
  return nbformat.read(ROOT / 'notebooks' / f'{name}.ipynb', as_version=4)


def execute(book, folder, **options):
  import nbclient
  nbclient.NotebookClient(book, timeout=900, resources=dict(metadata=dict(path=str(folder))), **options).execute()
  return book


def text_of(book):
  outputs = [output for cell in book.cells if cell.cell_type == 'code' for output in cell.outputs]
  shown = [output.get('text', '') or output.get('data', {}).get('text/plain', '') for output in outputs]  # rich's, too
  return '\n'.join(shown)


@pytest.mark.slow
def test_own_text_resumes_after_an_interruption(tmp_path, monkeypatch):
  """The session ends in the middle of training; running all cells again on the same folder finishes the run."""
  import nbclient
  monkeypatch.setenv('T5LIKE_FOLDER', str(tmp_path / 'drive'))
  book = read('own_text', tmp_path)
  client = nbclient.NotebookClient(book, timeout=900, allow_errors=True,
                                   resources=dict(metadata=dict(path=str(tmp_path))))
  with interrupts.once(client, tmp_path / 'drive/run/metrics.jsonl', 1):
    client.execute()
  errors = [output for cell in book.cells if cell.cell_type == 'code' for output in cell.outputs
            if output.output_type == 'error']
  assert errors and 'saved' in errors[0].evalue
  done = tiny.metrics(tmp_path / 'drive/run')[0][-1]['step']

  again = text_of(execute(read('own_text', tmp_path), tmp_path))
  assert 'Resumed from step' in again and 'stop.tokens reached after step 74' in again
  steps = [line['step'] for line in tiny.metrics(tmp_path / 'drive/run')[0]]
  assert steps == sorted(set(steps)) and steps[-1] >= done


def test_a_model_of_the_hub_is_tuned(tmp_path, monkeypatch):
  """Begins with a folder as the Hub has them, and the loss on text like that of the tuning falls."""
  import jax

  from t5like.huggingface import runs
  from t5like.training import loop
  config = tiny.config(tmp_path, steps=4, vocabulary=dict(name='bytes', sentinels=0))
  loop.train(config, str(tmp_path / 'small'), 'small', jax.devices()[:1])
  runs.export_run(str(tmp_path / 'small'), str(tmp_path / 'hub'))
  monkeypatch.setenv('T5LIKE_MODEL', str(tmp_path / 'hub'))
  monkeypatch.setenv('T5LIKE_STEPS', '30')
  execute(read('finetune_hub', tmp_path), tmp_path)
  lines = tiny.metrics(tmp_path / 'runs/hub_tuned')[0]
  assert lines[-1]['step'] == 30 and lines[-1]['loss'] < lines[0]['loss'] - 0.5
  assert (tmp_path / 'runs/hub_exported/model.safetensors').exists()
