"""A kernel's interrupt in the middle of training: the cell ends with the state saved, and resumes when run again."""
import pytest

from tests import tiny
from tests.conftest import ROOT
from tests.notebook import interrupts

pytestmark = pytest.mark.notebook
CELL = '''
import sys; sys.path.insert(0, {root!r})
import pathlib, jax
jax.config.update('jax_platforms', 'cpu')
import t5like
from tests import tiny
config = tiny.config(pathlib.Path({folder!r}), steps={steps}, checkpoint=dict(every=0), evaluate=dict(every=10))
print(t5like.train(config, {folder!r} + '/{run}', devices=jax.devices()[:1])['step'])
'''


def cell(folder, run, steps=60):
  return CELL.format(root=str(ROOT), folder=str(folder), run=run, steps=steps)


def losses(folder):
  return [(line['step'], line['loss'], line['grad_norm']) for line in tiny.metrics(folder)[0]]


def test_an_interrupted_cell_resumes_where_it_was(tmp_path):
  import nbclient
  import nbformat
  book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell(tmp_path, name))
                                         for name in ('straight', 'run', 'run')])
  client = nbclient.NotebookClient(book, timeout=600, allow_errors=True)
  with interrupts.once(client, tmp_path / 'run/metrics.jsonl', 5):
    client.execute()
  straight, interrupted, again = book.cells
  (error,) = [o for o in interrupted.outputs if o.output_type == 'error']
  assert error.ename == 'Interrupted' and 'with the state of this step saved' in error.evalue
  step = int(error.evalue.split('after step ')[1].split()[0])
  text = ''.join(o.get('text', '') + o.get('data', {}).get('text/plain', '') for o in again.outputs)
  assert f'Resumed from step {step}' in text and text.rstrip().endswith('60')
  assert losses(tmp_path / 'run') == losses(tmp_path / 'straight')
  validations = [[line['validation/nll'] for line in tiny.metrics(tmp_path / name)[1]] for name in ('run', 'straight')]
  assert validations[0] == validations[1] and len(validations[0]) == 6
