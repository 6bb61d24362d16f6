"""launch/tpu_vm.sh: what it tells gcloud, and what the hosts then do (one stands in for all)."""
import os
import re
import shlex
import shutil
import time

import pytest

from tests.launch.paths import LAUNCH, ROOT, recorded, run

SCRIPT = LAUNCH / 'tpu_vm.sh'
RUN = ['--config=configs/decoder_1b.py', '--workdir=gs://BUCKET/run', '--config.data.source=text:a b']
POD = dict(NAME='pod', ZONE='us-west4-a', TYPE='v5litepod-256', REF='HEAD', PROJECT=None, DRY_RUN=None, SECRETS=None)


@pytest.fixture
def host(tmp_path):
  """Variables under which gcloud is a script that takes notes, and runs what is meant for the hosts in one folder."""
  tools, home = tmp_path / 'tools', tmp_path / 'host'
  (home / '.local/bin').mkdir(parents=True)
  tools.mkdir()

  def tool(path, text):
    path.write_text('#!/usr/bin/env bash\n' + text)
    path.chmod(0o755)

  tool(tools / 'gcloud', f'''printf '%s\\n' "$*" >> {tmp_path}/asked
case "$4" in
  describe) cat {tmp_path}/state ;;
  create) echo ACTIVE > {tmp_path}/state ;;
  delete) rm {tmp_path}/state ;;
  scp) cp "$5" {home}/"${{6#*:}}" ;;
  ssh) for a in "$@"; do [[ $a == --command=* ]] && cd {home} && HOME={home} bash -c "${{a#--command=}}"; done ;;
esac
''')
  tool(tools / 'python3', 'exit 0\n')  # pip
  tool(home / '.local/bin/uv', f'''echo "$*" >> {tmp_path}/asked_uv
if [[ $1 == venv ]]; then mkdir -p ${{@: -1}}/bin; cp {tmp_path}/python ${{@: -1}}/bin/python; fi
''')
  tool(tmp_path / 'python', f'''[[ $1 == -c ]] && exit 0
trap 'exit 75' TERM
for a in "$@"; do printf '[%s]' "$a" >> {tmp_path}/ran; done; echo >> {tmp_path}/ran
echo training; while [[ ! -f {tmp_path}/code ]]; do sleep 0.05; done; exit "$(cat {tmp_path}/code)"
''')
  repo = tmp_path / 'repo'
  shutil.copytree(LAUNCH, repo / 'launch')
  shutil.copy(ROOT / 'main.py', repo)
  git = ['git', '-C', repo, '-c', 'user.name=a', '-c', 'user.email=a@b']
  for command in (['init', '-q'], ['add', '.'], ['commit', '-q', '-m', 'all']):
    assert run(*git, *command).returncode == 0
  yield dict(POD, PATH=f'{tools}:{os.environ["PATH"]}', TMPDIR=str(tmp_path), REPO=str(repo), REF=None, POLL='0.2',
             RETRY_WAIT='0')
  (tmp_path / 'code').write_text('0')  # nothing outlives a test that failed


@pytest.mark.parametrize('command', ['create', 'wait', 'setup', 'run', 'logs', 'status', 'stop', 'delete', 'keep'])
def test_dry_run(command):
  arguments = RUN if command in ('run', 'keep') else []
  text = ''
  for flags in ([], ['--slices=2', '--spot', '--project=mine', '--extras=tpu']):
    done = run(SCRIPT, *flags, '--dry_run', command, *arguments, **POD)
    assert done.returncode == 0, done.stderr
    text += done.stdout
  recorded(f'tpu_vm_{command}.txt', text)


@pytest.mark.parametrize('arguments, message', [
    (['--nmae=x', 'run'], '--nmae=x: no such setting'), (['start'], 'start: no such command'),
    (['--name=', 'run'], 'NAME and ZONE are needed'), (['--slices=none', 'create'], 'SLICES=none: needs'),
    (['--type=v9-8', 'create'], 'TYPE=v9-8'), (['run'], 'which run?'),
    (['run', '--config=a.py', '--workdir=here'], 'Add --workdir=gs://BUCKET/run'),
    (['--type=7x-128', 'create'], 'launch/gke.py --accelerator=7x'),
    (['--flex_start=long', 'create'], 'FLEX_START=long: needs a duration'),
    (['--flex_start=24h', '--spot', 'create'], 'Set one of them'),
    (['--secrets=NOT_THERE', 'run'], 'the variable NOT_THERE is not set'),
    (['--secrets=KEY=value', 'run'], 'names of variables')])
def test_mistakes(arguments, message):
  done = run(SCRIPT, *arguments, **dict(POD, DRY_RUN='1'))
  assert done.returncode == 2 and message in done.stderr, done.stderr


def test_only_commits_are_sent(tmp_path):
  run('git', 'init', '-q', tmp_path)
  (tmp_path / 'new.py').touch()
  done = run(SCRIPT, '--dry_run', 'setup', **dict(POD, REPO=str(tmp_path), REF=None))
  assert done.returncode == 2 and 'not committed, such as new.py' in done.stderr


def test_a_link_with_the_name_of_our_archive_is_not_followed(host, tmp_path):
  """Names in a shared folder for temporary files cannot be known before, and nothing is left there."""
  victim, shared = tmp_path / 'victim', tmp_path / 'shared'
  victim.write_text('mine')
  shared.mkdir()
  for name in ('t5like-pod.tar.gz', 't5like.tar.gz', 't5like.env', '.t5like.env'):
    (shared / name).symlink_to(victim)
  variables = dict(host, TMPDIR=str(shared), SECRETS='HF_TOKEN', HF_TOKEN='hf_1')
  for command in (['setup'], ['run', *RUN]):
    assert run(SCRIPT, *command, **variables).returncode == 0
  assert victim.read_text() == 'mine' and len(list(shared.iterdir())) == 4


def test_secrets_reach_the_run_and_no_command_line(host, tmp_path):
  secret = "hf_'$(touch injected)\" \\ é"
  (tmp_path / 'python').write_text(f'printf %s "$HF_TOKEN" > {tmp_path}/token; echo "$WANDB_API_KEY" > {tmp_path}/key')
  variables = dict(host, SECRETS='HF_TOKEN WANDB_API_KEY', HF_TOKEN=secret, WANDB_API_KEY='w1')
  assert run(SCRIPT, 'setup', **variables).returncode == 0
  done = run(SCRIPT, 'run', *RUN, **variables)
  assert done.returncode == 0, done.stderr
  assert wait_for((tmp_path / 'key').exists) and wait_for(lambda: (tmp_path / 'key').read_text() == 'w1\n')
  assert (tmp_path / 'token').read_text() == secret
  assert 'hf_' not in (tmp_path / 'asked').read_text() + done.stdout + done.stderr
  assert (tmp_path / 'host/.t5like.env').stat().st_mode & 0o777 == 0o600
  assert not list(tmp_path.rglob('injected'))


@pytest.mark.parametrize('name, value', [
    ('EXTRAS', "tpu]'; touch injected; echo '["), ('PYTHON', '3.12; touch injected'),
    ('RETRY_WAIT', '0; touch injected')])
def test_settings_are_words_on_the_hosts_too(name, value, host, tmp_path):
  for command in (['setup'], ['run', *RUN]):
    run(SCRIPT, *command, **dict(host, **{name: value}))
  assert not list(tmp_path.rglob('injected'))


def test_arguments_are_the_same_words_on_the_hosts(host, tmp_path):
  words = ["--config.data.source=text:a b'c", '--config.x=$(touch injected)', '--config.y=`touch injected`',
           '--a=;&|<>', "--b=$'\\n'", '--c=*', '--d=é', '--e=', '--f=~', '--g=#!']
  do = lambda *command: run(SCRIPT, *command, **host)
  assert do('setup').returncode == 0
  done = do('run', *RUN, *words)
  assert done.returncode == 0, done.stderr
  assert wait_for((tmp_path / 'ran').exists)
  assert (tmp_path / 'ran').read_text() == '[main.py]' + ''.join(f'[{a}]' for a in RUN + words) + '\n'
  assert not list(tmp_path.rglob('injected'))


def test_flex_start():
  done = run(SCRIPT, '--flex_start=24h', '--dry_run', 'create', **POD)
  assert done.stdout.startswith('gcloud alpha compute tpus queued-resources create pod --zone=us-west4-a')
  assert '--provisioning-model=flex-start --max-run-duration=24h' in done.stdout and '--spot' not in done.stdout


def wait_for(condition):
  for _ in range(100):
    if condition():
      return True
    time.sleep(0.05)


def test_the_life_of_a_run(host, tmp_path):
  do = lambda *command: run(SCRIPT, *command, **host)
  assert do('create').returncode == 0 and do('wait').stdout == 'pod: ACTIVE\n'
  done = do('setup')
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'host/t5like/main.py').exists()
  assert 'pip install' in (tmp_path / 'asked_uv').read_text() and '-e .[tpu,gcs]' in (tmp_path / 'asked_uv').read_text()
  assert 'none' in do('status').stdout
  done = do('run', *RUN)
  assert done.returncode == 0, done.stderr
  assert wait_for((tmp_path / 'ran').exists)
  assert (tmp_path / 'ran').read_text() == '[main.py]' + ''.join(f'[{a}]' for a in RUN) + '\n'
  assert do('status').stdout.splitlines() == ['pod: ACTIVE', 'running', 'training']
  again = do('run', *RUN)
  assert again.returncode == 1 and 'a run is on already' in again.stderr
  assert 'stopped' in do('stop').stdout
  assert do('status').stdout.splitlines()[1] == 'ended 75'
  assert do('run', *RUN).returncode == 0
  (tmp_path / 'code').write_text('3')
  assert wait_for(lambda: 'ended 3' in do('status').stdout)
  (tmp_path / 'host/t5like/prepared').mkdir()
  (tmp_path / 'host/t5like/stale.py').touch()
  assert do('setup').returncode == 0  # data stays, old code goes
  assert (tmp_path / 'host/t5like/prepared').exists() and not (tmp_path / 'host/t5like/stale.py').exists()
  assert do('delete').returncode == 0
  asked = dict.fromkeys((tmp_path / 'asked').read_text().splitlines(keepends=True))  # how often, is chance
  recorded('gcloud_asked.txt', re.sub(r'TMP/tmp\.\w+/', 'TMP/FOLDER/', ''.join(asked).replace(str(tmp_path), 'TMP')))


def test_keep(host, tmp_path):
  """Slices that are gone are asked for again, a run that failed for good ends it."""
  (tmp_path / 'state').write_text('SUSPENDED\n')
  (tmp_path / 'code').write_text('4')
  done = run(SCRIPT, 'keep', *RUN, **host)
  assert done.returncode == 4, done.stderr
  asked = [line.split()[3] for line in (tmp_path / 'asked').read_text().splitlines()]
  assert [a for a in asked if a not in ('describe', 'ssh')] == ['delete', 'create', 'scp']
  assert (tmp_path / 'ran').read_text().count('main.py') == 1
  assert run(SCRIPT, 'keep', *RUN, **host).returncode == 4  # begins anew, as asked
  assert (tmp_path / 'ran').read_text().count('main.py') == 2


@pytest.mark.parametrize('state', ['FAILED', 'SUSPENDED'])
def test_wait_gives_up(host, tmp_path, state):
  (tmp_path / 'state').write_text(state)
  done = run(SCRIPT, 'wait', **host)
  assert done.returncode == 2 and f'NAME=pod is {state}' in done.stderr


def gcloud_of_the_page():
  """[words] of all commands of gcloud in blocks of docs/pods.md."""
  blocks = re.findall(r'^```\n(.*?)^```', (ROOT / 'docs/pods.md').read_text(), re.M | re.S)
  lines = ''.join(blocks).replace('\\\n', ' ').splitlines()
  return [shlex.split(line, comments=True) for line in lines if line.startswith('gcloud')]


def test_the_page_says_what_a_first_slice_needs():
  commands = [' '.join(words) for words in gcloud_of_the_page()]
  for need in ('auth login', 'services enable tpu.googleapis.com',
               'storage buckets create gs://BUCKET --location=us-west4',
               'iam service-accounts create', 'roles/storage.objectAdmin', 'quotas info list'):
    assert any(need in command for command in commands), need
  text = (ROOT / 'docs/pods.md').read_text()
  zones = set(re.findall(r'\b(?:us|europe|asia)-[a-z]+\d-[a-z]\b', text))
  assert 'us-west4-b' not in zones and {'us-west4-a', 'us-central1-a', 'us-south1-a', 'us-west1-c'} <= zones
  settings = set(re.findall(r'\b(SPOT|FLEX_START|SECRETS|CREATE_FLAGS|WANDB_API_KEY|HF_TOKEN)\b', text))
  assert len(settings) == 6 and all(name in SCRIPT.read_text() for name in settings)


@pytest.mark.gcloud
def test_gcloud_knows_the_commands_of_the_page():
  import json
  for words in gcloud_of_the_page():
    verdict = run('gcloud', 'meta', 'lint-gcloud-commands', f'--command-string={shlex.join(words)}').stdout
    assert json.loads(verdict)[0]['success'], verdict


@pytest.mark.gcloud
def test_gcloud_knows_these_flags():
  import json
  for command in ('create', 'setup', 'run', 'logs', 'status', 'stop', 'delete'):
    for flags in ([], ['--slices=2', '--spot', '--project=mine'], ['--flex_start=24h', '--secrets=HOME']):
      lines = run(SCRIPT, *flags, '--dry_run', command, *(RUN if command == 'run' else []), **POD).stdout.splitlines()
      for line in lines:
        if line.startswith('gcloud'):
          verdict = run('gcloud', 'meta', 'lint-gcloud-commands', f'--command-string={line}').stdout
          assert json.loads(verdict)[0]['success'], verdict
