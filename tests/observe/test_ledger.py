"""Where time goes: what adds up, what is lost, what is idle."""
import json

import jax
import pytest

from t5like.errors import ConfigError
from t5like.observe import ledger, report
from t5like.training import loop
from tests import tiny


def line(attempt, time, at, event=None, began=None, **seconds):
  return dict(attempt=attempt, time=time, step=at, seconds=seconds, **(dict(event=event) if event else {}),
              **(dict(began=began) if began is not None else {}))


def test_steps_that_are_done_again_are_lost_and_gaps_are_idle():
  lines = [line(1, 10, 0, 'start', 0, init=10), line(1, 20, 10, step=9, data=1), line(1, 32, 20, step=10, data=2),
           line(2, 60, 15, 'start', 50, init=10), line(2, 65, 20, step=5)]
  found = ledger.account(lines)
  assert found['seconds'] == dict(init=20, compile=0, data=2, step=19, save=0, eval=0, lost=6, idle=18)
  assert found['total'] == 65 and found['goodput'] == 19 / 65, 'from the first start to the last line'
  assert [(a['attempt'], a['from_step'], a['to_step']) for a in found['attempts']] == [(1, 0, 20), (2, 15, 20)]


def test_a_rewind_loses_what_was_behind_it():
  lines = [line(1, 1, 0, 'start', 0, init=1), line(1, 11, 10, step=10), line(1, 14, 6, 'rewind', step=2, init=1),
           line(1, 18, 10, step=4)]
  found = ledger.account(lines)
  assert found['seconds']['lost'] == pytest.approx(4 + 2) and found['seconds']['step'] == 10
  assert found['total'] == pytest.approx(18)


def test_nothing_is_made_of_nothing(tmp_path):
  assert ledger.account([])['total'] == 0
  (tmp_path / 'ledger.jsonl').write_text('{"attempt": 1, "time": 3, "step": 1, "seconds": {"step": 3}}\n{"attem')
  assert len(ledger.read(tmp_path)) == 1, 'a line that was cut off does not count'
  with pytest.raises(ConfigError, match='holds no run'):
    report.write(tmp_path)


def test_a_run_accounts_for_all_its_time(tmp_path):
  """Two starts: each second belongs to one phase, and together they are the time between first and last line."""
  c = tiny.config(tmp_path, steps=6)
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  c.stop.tokens *= 2
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  lines = ledger.read(tmp_path / 'run')
  found = ledger.account(lines)
  assert found['total'] == pytest.approx(lines[-1]['time'] - lines[0]['began'], abs=0.1)
  assert [(a['from_step'], a['to_step'], a['end']) for a in found['attempts']] == [(0, 6, 'done'), (6, 12, 'done')]
  assert all(found['seconds'][phase] > 0 for phase in ('init', 'compile', 'data', 'step', 'save', 'eval'))
  assert found['seconds']['lost'] == 0
  path, _ = report.write(tmp_path / 'run')
  text = path.read_text()
  assert '@DATA@' not in text and '@UPLOT@' not in text
  assert 'http' not in text.replace('https://github.com/leeoniya/uPlot', ''), 'which its licence notice names'
  (facts,) = json.loads(text.split('id="data">')[1].split('</script>')[0])
  assert facts['curves']['loss']['x'] == [512 * n for n in range(1, 13)]
  assert len(facts['curves']['validation']['y']) >= 3 and facts['result']['step'] == 12


def test_a_ledger_that_cannot_be_written_costs_nothing_else(tmp_path):
  book = ledger.Ledger(tmp_path / 'no/such/folder')
  book.start(0)
  book.enter('step')
  book.flush(1)
