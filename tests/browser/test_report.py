"""The page of `main.py report` in a real browser: pip install -e '.[test,browser]' && pytest -m browser."""
import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import pytest

from t5like.observe import report
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


# What each plot draws: uPlot paints on a canvas, so its data are looked at.
PLOTS = '''charts.map(chart => ({title: chart.title, shown: chart.card.querySelector('canvas').width > 0,
  from: chart.u.scales.x.min, to: chart.u.scales.x.max, low: chart.u.scales.y.min, high: chart.u.scales.y.max,
  lines: chart.lines.map((line, k) => ({name: line.name, dots: !!line.dots, raw: !!line.raw,
    points: chart.u.data[k + 1].filter(y => y != null).length,
    bad: chart.u.data[k + 1].some(y => y != null && !isFinite(y))}))}))'''


FLUSH = 'charts.forEach(chart => chart.u.batch(() => {}))'  # uPlot does what is asked of it later, else


def by_title(plots):
  return {plot['title'].split(',')[0]: plot for plot in plots}


def points(plot):
  return [line['points'] for line in plot['lines']]


def test_every_plot_has_as_many_points_as_the_data(page, tmp_path):
  plots, console, requests = look(page, PLOTS, tmp_path / 'x.png')
  facts = report.gather(page.parent)
  found = by_title(plots)
  whole = len(facts['curves']['loss']['x'])
  assert points(found['loss']) == [whole, len(facts['curves']['validation']['x'])] and points(found['loss'])[1] == 8
  for title, key in (('tokens a second', 'tokens_per_second'), ('learning rate', 'learning_rate'),
                     ('gradient norm', 'grad_norm'), ('memory of the host process', 'host_memory')):
    assert points(found[title]) == [len(facts['curves'][key]['x'])]
  assert points(found['rows read of each part of the mixture']) == [whole] * 2
  assert len(found['tasks']['lines']) == 1
  assert all(plot['shown'] and not any(line['bad'] for line in plot['lines']) for plot in plots)
  assert console == [] and requests == [page.absolute().as_uri()], 'one file, nothing else, no complaints'


def test_the_cursor_says_what_is_below_it(page, tmp_path):
  script = f'''(() => {{ const chart = charts[0], left = chart.u.valToPos(800 * 131072, 'x');
    chart.u.setCursor({{left, top: 40}}); {FLUSH};
    return chart.card.querySelector('.hint').textContent; }})()'''
  text, _, _ = look(page, script, tmp_path / 'x.png')
  curve = report.gather(page.parent)['curves']['loss']
  assert 'step 800' in text and f'training {curve["y"][-1]:.4g}' in text and 'validation' in text


def change(action):
  """A script: what the plots were before and are after an action."""
  return f'(() => {{ const before = {PLOTS}; {action}; {FLUSH}; return [before, {PLOTS}]; }})()'


def test_the_axis_may_be_logarithmic_steps_or_hours(page, tmp_path):
  for action, last in (("log.onclick()", 800 * 131_072), ("axis.value = 'steps'; axis.onchange()", 800),
                       ("axis.value = 'hours'; axis.onchange()", 799 / 3600)):
    (before, after), console, _ = look(page, change(action), tmp_path / 'x.png')
    assert console == [] and [points(plot) for plot in before] == [points(plot) for plot in after]
    assert after[0]['to'] == pytest.approx(last, rel=0.05) and before[0]['to'] == pytest.approx(800 * 131_072, rel=0.05)


def test_smoothing_takes_the_noise_out_and_leaves_the_points(page, tmp_path):
  script = '''(() => { smooth.value = 95; smooth.oninput(); const u = charts[0].u;
    const rough = k => { const ys = u.data[k].filter(y => y != null).slice(400);
      return ys.slice(1).reduce((sum, y, i) => sum + Math.abs(y - ys[i]), 0); };
    return [charts[0].lines.map(line => [line.name, !!line.raw]), rough(1), rough(2), much.textContent]; })()'''
  (lines, raw, smooth, label), console, _ = look(page, script, tmp_path / 'x.png')
  assert lines == [['training', True], ['training', False], ['validation', False]]
  assert smooth < raw / 5 and label == '0.95' and console == []


def test_zooming_one_plot_zooms_all_and_back(page, tmp_path):
  script = f'''(() => {{ const u = charts[1].u; u.setScale('x', {{min: 4e7, max: 6e7}}); {FLUSH}; {FLUSH};
    const zoomed = {PLOTS}; all.onclick(); {FLUSH}; return [zoomed, {PLOTS}]; }})()'''
  (zoomed, whole), console, _ = look(page, script, tmp_path / 'x.png')
  assert {(plot['from'], plot['to']) for plot in zoomed} == {(4e7, 6e7)} and console == []
  assert all(plot['to'] > 1e8 for plot in whole)
  assert zoomed[0]['high'] - zoomed[0]['low'] < (whole[0]['high'] - whole[0]['low']) / 2


def test_runs_are_compared_on_one_page(tmp_path):
  for name in ('small', 'large'):
    write_run(tmp_path / name, d_model=128 if name == 'small' else 256)
  path, _ = report.write(tmp_path / 'small', compare=[tmp_path / 'large'])
  script = f'''[{PLOTS}, document.querySelector('h1').textContent,
    [...document.querySelectorAll('h2')].map(h => h.textContent),
    [...document.querySelectorAll('td')].map(t => t.textContent)]'''
  (plots, title, headings, cells), console, _ = look(path, script, tmp_path / 'x.png')
  assert title == 'small, large' and console == []
  assert [line['name'] for line in plots[0]['lines']] == ['small', 'small, validation', 'large', 'large, validation']
  at = cells.index('model.d_model')
  assert 'Config, where the runs differ' in headings and cells[at + 1:at + 3] == ['128', '256']


def test_starts_show_commit_devices_and_versions(page, tmp_path):
  cells, _, _ = look(page, "[...document.querySelectorAll('td')].map(t => t.textContent)", tmp_path / 'x.png')
  assert {'abc1234+', '256 x TPU v5 lite, 64 hosts', 'Python 3.12.1, jax 0.12.0'} <= set(cells)


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
  assert console == [] and plots and math.isfinite(account['goodput'])
  assert not any(line['bad'] for plot in plots for line in plot['lines'])
