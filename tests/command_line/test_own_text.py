"""The commands of docs/guide.md and docs/quickstart.md on own text, word for word: of one, three and 43 small files."""
import json
import random
import re
import shlex
import subprocess
import sys

import pytest
import zstandard

from t5like import command_line, commands
from tests.conftest import ROOT

PAGES = ('docs/guide.md', 'docs/quickstart.md')
SHORT = ['--config.stop.tokens=20480', '--config.evaluate.every=5', '--config.sample.tokens=8']  # 10 steps


def own_text_commands():
  """Lists of words after main.py: commands of the pages that train on files of the reader."""
  for page in PAGES:
    text = (ROOT / page).read_text(encoding='utf-8')
    for block in re.findall(r'^```\w*\n(.*?)^```', text, re.M | re.S):
      for line in re.sub(r'\\\n\s*', ' ', block).splitlines():
        if 'python main.py' in line and re.search(r'data\.source=.?(text|jsonl):', line):
          yield page, shlex.split(line.partition('python main.py')[2], comments=True)


COMMANDS = [(page, words) for page, words in own_text_commands() if 'configs/gpt2.py' not in ' '.join(words)]
ids = [f'{page.split("/")[-1]}-{i}' for i, (page, _) in enumerate(COMMANDS)]


def write(folder, count, words=300, seed=1):
  """Small files as the pages name them: novels/N.txt, web/N.jsonl.zst."""
  rng = random.Random(seed)
  known = [''.join(rng.choices('abcdefghij', k=rng.randint(2, 8))) for _ in range(400)]
  for kind in ('novels', 'web'):
    (folder / kind).mkdir()
  for i in range(count):
    text = ' '.join(rng.choices(known, k=words)) + '.\n'
    (folder / 'novels' / f'{i}.txt').write_text(text)
    line = json.dumps(dict(text=text)).encode() + b'\n'
    (folder / 'web' / f'{i}.jsonl.zst').write_bytes(zstandard.compress(line))


def test_the_pages_have_such_commands():
  assert len(COMMANDS) >= 3
  said = ' '.join(' '.join(words) for _, words in COMMANDS)
  assert all(part in said for part in ('text:novels/**/*.txt', 'text:novels/*.txt', 'jsonl:web/*.jsonl.zst',
                                       'validation=tail'))


@pytest.mark.parametrize('count', [1, 3, 43])
@pytest.mark.parametrize('page, words', COMMANDS, ids=ids)
def test_own_text_is_prepared(tmp_path, monkeypatch, capsys, page, words, count):
  monkeypatch.chdir(tmp_path)
  write(tmp_path, count)
  commands.run(command_line.read(['prepare', *words]))
  shown = capsys.readouterr().out
  assert re.search(r'^train: \d+ documents', shown, re.M) and re.search(r'^validation: \d+ documents', shown, re.M)
  if count < 43 and 'validation=tail' not in ' '.join(words):
    assert 'to validate on' in shown  # that it does otherwise than data.validation says


@pytest.mark.slow
@pytest.mark.parametrize('count, words_each', [(1, 300), (3, 100), (43, 100)])
@pytest.mark.parametrize('page, words', COMMANDS, ids=ids)
def test_own_text_is_trained_on_sampled_and_evaluated(tmp_path, page, words, count, words_each):
  write(tmp_path, count, words_each)
  workdir = next(word for word in words if word.startswith('--workdir='))

  def main(*args):
    done = subprocess.run([sys.executable, ROOT / 'main.py', *args], cwd=tmp_path, capture_output=True, text=True,
                          timeout=600)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stdout + done.stderr
    return done.stdout
  shown = main(*words, *SHORT)
  assert 'Done: stop.tokens reached after 10 steps' in shown and 'validation nll' in shown
  assert 'Nothing left to do' in main(*words, *SHORT)
  assert main('generate', workdir, '--prompt=abc', '--tokens=8').startswith('abc')
  assert 'From' in main('inspect', *words, *SHORT, '--step=3', '--rows=1')
  assert 'next_line' in main('evaluate', workdir, '--tasks=next_line', '--limit=2')
  assert 'report.html' in main('report', workdir)
