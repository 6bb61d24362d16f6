"""The page of `main.py report` in a real browser: pip install -e '.[test,browser]' && pytest -m browser."""
import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import pytest

from t5like import report
from tests.browser.run import write_run

pytestmark = [pytest.mark.browser,
              pytest.mark.skipif(not importlib.util.find_spec('PyQt6'), reason="pip install -e '.[browser]'")]
PAGE = pathlib.Path(__file__).parent / 'page.py'


def look(file, script, picture, width=1200, height=900, scheme='light'):
  """(value of a script in the page, its console, its requests); a picture of it is left."""
  done = subprocess.run([sys.executable, str(PAGE), str(file), str(picture), str(width), str(height), scheme, script],
                        capture_output=True, text=True, timeout=120)
  lines = [line for line in done.stdout.splitlines() if line.startswith('{')]
  if not lines and 'cannot open shared object file' in done.stderr:
    pytest.skip(f'the browser lacks a library of this machine: {done.stderr.strip().splitlines()[-1]}')
  found = json.loads(lines[-1])
  return json.loads(found['value']), found['console'], found['requests']


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  folder = tmp_path_factory.mktemp('report') / 'big_run'
  write_run(folder)
  return report.write(folder)[0]


PLOTS = '''[...document.querySelectorAll('.plot')].map(p => ({title: p.querySelector('h3').textContent,
  lines: [...p.querySelectorAll('.series')].map(l => l.getAttribute('points').split(' ').length),
  dots: p.querySelectorAll('.point').length, bad: /NaN|Infinity/.test(p.innerHTML)}))'''


def test_every_plot_has_as_many_points_as_the_data(page, tmp_path):
  plots, console, requests = look(page, PLOTS, tmp_path / 'x.png')
  facts = report.gather(page.parent)
  by_title = {p['title'].split(',')[0]: p for p in plots}
  assert by_title['loss']['lines'] == [len(facts['curves']['loss']['x'])]
  assert by_title['loss']['dots'] == len(facts['curves']['validation']['x']) == 8
  for title, key in (('tokens a second', 'tokens_per_second'), ('learning rate', 'learning_rate'),
                     ('gradient norm', 'grad_norm')):
    assert by_title[title]['lines'] == [len(facts['curves'][key]['x'])]
  assert by_title['rows read of each part of the mixture']['lines'] == [len(facts['curves']['loss']['x'])] * 2
  assert len(by_title['tasks']['lines']) == 1 and not any(p['bad'] for p in plots)
  assert console == [] and requests == [page.absolute().as_uri()], 'one file, nothing else, no complaints'


def test_values_are_shown_under_the_pointer(page, tmp_path):
  script = '''(() => { const p = document.querySelector('.plot'), s = p.querySelector('svg');
    const b = s.getBoundingClientRect();
    s.dispatchEvent(new PointerEvent('pointermove', {clientX: b.left + b.width * .995, clientY: b.top + 20}));
    return p.querySelector('.hint').textContent; })()'''
  text, _, _ = look(page, script, tmp_path / 'x.png')
  curve = report.gather(page.parent)['curves']['loss']
  assert 'step 800' in text and f'training {curve["y"][-1]:.4g}' in text and 'validation' in text


def test_the_axis_of_tokens_can_be_logarithmic(page, tmp_path):
  script = f'''(() => {{ const before = {PLOTS}; document.querySelector('button').click(); const after = {PLOTS};
    return [before, after, document.querySelector('button').textContent]; }})()'''
  (before, after, label), console, _ = look(page, script, tmp_path / 'x.png')
  assert [p['lines'] for p in before] == [p['lines'] for p in after] and 'linear' in label and console == []
  assert not any(p['bad'] for p in after)


def test_text_of_a_run_is_text(page, tmp_path):
  """A sample that would be HTML, or end the script, is shown as it is."""
  script = '''[[...document.querySelectorAll('pre')].map(p => p.textContent),
    document.querySelectorAll('main script').length, window.hacked === undefined]'''
  (samples, scripts, whole), console, _ = look(page, script, tmp_path / 'x.png')
  assert any('</script><script>hacked = 1</script>' in text for text in samples)
  assert scripts == 0 and whole and console == []


@pytest.mark.parametrize('scheme, width', [('light', 1200), ('dark', 1200), ('light', 390)])
def test_nothing_is_wider_than_the_window(page, tmp_path, scheme, width):
  script = '''[document.documentElement.scrollWidth, innerWidth, getComputedStyle(document.body).backgroundColor]'''
  (wide, inner, color), _, _ = look(page, script, tmp_path / 'x.png', width, 2600, scheme)
  assert wide <= inner
  level = sum(map(int, color[4:-1].split(',')))
  assert level < 200 if scheme == 'dark' else level > 600


def test_a_run_of_one_step_has_a_page(tmp_path):
  write_run(tmp_path / 'run', steps=1)
  path, account = report.write(tmp_path / 'run')
  plots, console, _ = look(path, PLOTS, tmp_path / 'x.png')
  assert console == [] and plots and not any(p['bad'] for p in plots) and math.isfinite(account['goodput'])
