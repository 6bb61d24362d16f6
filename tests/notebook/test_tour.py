"""The tour runs from top to bottom, as in colab, and shows what it promises."""
import importlib.util
import re

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.notebook


def test_the_tour_runs_from_top_to_bottom(tmp_path):
  import nbclient
  import nbformat
  for name in ('configs', 't5like', 'main.py', 'notebooks'):
    (tmp_path / name).symlink_to(ROOT / name)
  book = nbformat.read(ROOT / 'notebooks' / 'tour.ipynb', as_version=4)
  nbclient.NotebookClient(book, timeout=900, resources=dict(metadata=dict(path=str(tmp_path)))).execute()
  outputs = [o for cell in book.cells if cell.cell_type == 'code' for o in cell.outputs]
  pictures = [o for o in outputs if 'image/png' in o.get('data', {})]
  text = '\n'.join(o.get('text', '') for o in outputs)
  assert len(pictures) >= 4, 'the curve, attention of two models, the bias'
  assert 'Did you mean optimizer.learning_rate?' in text
  nll = float(re.search(r'stop.tokens reached: ([\d.]+) nats per token', text)[1])
  assert 3 < nll < 5.5, 'it began with 7.6'
  assert re.search(r'agreement|next_line .*accuracy', text) and "'model_type': 'llama'" in text
  assert ('Fits:' in text) == bool(importlib.util.find_spec('libtpu'))
  assert (tmp_path / 'runs' / 'tour_exported' / 'model.safetensors').exists()
