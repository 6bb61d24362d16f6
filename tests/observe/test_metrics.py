"""Numbers for files and people."""
import json
import time

import numpy as np
import pytest

from t5like.observe import metrics


def test_lines_after_the_step_resumed_from_are_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = [json.dumps(dict(step=s, loss=1.0)) for s in (1, 2, 3, 4)]
  path.write_text('\n'.join(lines) + '\n{"step": 5, "lo')  # the last one cut off by a crash
  files = metrics.Files(tmp_path, 2)
  files.write(3, dict(loss=2.0))
  files.close()
  got = [json.loads(l) for l in path.read_text().splitlines()]
  assert [(l['step'], l['loss']) for l in got] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_rate_leaves_pauses_out():
  rate = metrics.Rate()
  assert rate.take() == 0
  rate.add(1000)
  time.sleep(0.05)
  first = rate.take()
  assert 0 < first <= 1000 / 0.05
  rate.pause()
  time.sleep(0.2)
  rate.add(1000)
  assert rate.take() == first  # nothing is known of an interval with a pause in it


def test_summary():
  got = metrics.summary(dict(nll=200.0, hits=25.0, weights=100.0), bytes_per_token=4.0)
  assert got['nll'] == 2 and got['accuracy'] == 0.25 and got['tokens'] == 100
  assert np.isclose(got['perplexity'], np.e ** 2) and np.isclose(got['bits_per_byte'], 2 / np.log(2) / 4)


@pytest.mark.parametrize('n, text', [(0, '0'), (999, '999'), (1000, '1k'), (1234567, '1.23M'),
                                     (2.1e10, '21B'), (5e15, '5P'), (0.5, '0.5')])
def test_short(n, text):
  assert metrics.short(n) == text


@pytest.mark.parametrize('s, text', [(5, '0:05'), (65.9, '1:05'), (3725, '1:02:05')])
def test_duration(s, text):
  assert metrics.duration(s) == text
