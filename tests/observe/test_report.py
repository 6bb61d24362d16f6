"""What the page of a run is made of: lines of files that a crash or another program may have spoilt."""
import json
import os

import pytest

from t5like.errors import CheckpointError
from t5like.observe import report
from tests.browser.run import write_run


@pytest.fixture
def run(tmp_path):
  write_run(tmp_path / 'run')
  return tmp_path / 'run'


def test_samples_with_any_separator_are_shown(run):
  texts = [f'a{separator}b' for separator in '\u2028\u2029\x85']
  with open(run / 'samples.jsonl', 'w', encoding='utf-8', newline='') as f:
    for text in texts:
      f.write(json.dumps(dict(step=1, prompt=text, text=text), ensure_ascii=False) + '\n')
  assert [sample['text'] for sample in report.gather(run)['samples']] == texts


@pytest.mark.parametrize('line', ['null', '3', '"text"', '[1]', '{"step": 1', '[' * 10 ** 5, '{"step": "\\ud800"}'])
def test_lines_that_are_no_numbers_are_left_out(line, run):
  before = report.gather(run)['curves']
  with open(run / 'metrics.jsonl', 'a', encoding='utf-8') as f:
    f.write(line + '\n')
  assert report.gather(run)['curves'] == before


def test_a_page_that_cannot_be_written_is_said_of_its_flag(run):
  with pytest.raises(CheckpointError, match='--output: cannot write .*Is a directory'):
    report.write(run, run)


@pytest.mark.parametrize('name', ['metrics.jsonl', 'samples.jsonl'])
@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_named(run, name, make):
  (run / name).unlink(missing_ok=True)
  make(run / name)
  with pytest.raises(CheckpointError, match=f'{name} cannot be read'):
    report.gather(run)
