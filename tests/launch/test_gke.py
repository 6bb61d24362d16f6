"""launch/gke.py: its manifests by their schema, and that hosts, chips and exit codes agree."""
import json
import math
import re
import shlex
import tomllib

import jsonschema
import pytest
import yaml
from hypothesis import given, strategies as st

from launch import gke
from t5like import errors
from tests.launch.paths import HERE, LAUNCH, ROOT, python, recorded

SCHEMA = json.loads((HERE / 'jobset.schema.json').read_text())
RUN = ('--name=t5 --image=REGISTRY/t5like --config=configs/decoder_1b.py --workdir=gs://BUCKET/run '
       '--config.data.directory=gs://BUCKET/prepared').split()


def manifest(*flags):
  done = python('gke.py', *RUN, *flags)
  assert done.returncode == 0, done.stderr
  it = yaml.safe_load(done.stdout)
  jsonschema.validate(it, SCHEMA)
  assert len(it['spec']['replicatedJobs']) == 1
  return done.stdout, it, it['spec']['replicatedJobs'][0]


@pytest.mark.parametrize('accelerator, label, topology, slices, hosts, chips', [
    ('v5e', 'tpu-v5-lite-podslice', '16x16', 1, 64, 4), ('v5e', 'tpu-v5-lite-podslice', '16x16', 2, 64, 4),
    ('v5e', 'tpu-v5-lite-podslice', '2x4', 1, 2, 4), ('v5e', 'tpu-v5-lite-podslice', '2x2', 1, 1, 4),
    ('v5e', 'tpu-v5-lite-podslice', '1x1', 1, 1, 1), ('v6e', 'tpu-v6e-slice', '4x4', 3, 4, 4),
    ('v5p', 'tpu-v5p-slice', '4x4x8', 4, 32, 4), ('7x', 'tpu7x', '4x4x4', 2, 16, 4),
    ('tpu7x', 'tpu7x', '2x2x1', 1, 1, 4), ('v4', 'tpu-v4-podslice', '2x2x1', 1, 1, 4)])
def test_tpus(accelerator, label, topology, slices, hosts, chips):
  _, it, jobs = manifest(f'--accelerator={accelerator}', f'--topology={topology}', f'--slices={slices}')
  job = jobs['template']['spec']
  pod = job['template']['spec']
  assert pod['nodeSelector'] == {'cloud.google.com/gke-tpu-accelerator': label,
                                 'cloud.google.com/gke-tpu-topology': topology}
  assert jobs['replicas'] == slices and job['parallelism'] == job['completions'] == hosts
  for amounts in pod['containers'][0]['resources'].values():
    assert amounts == {'google.com/tpu': chips}
  assert hosts * chips == math.prod(map(int, topology.split('x')))
  assert 'exclusive-topology' in next(iter(it['metadata']['annotations']))
  assert not any('coordinator' in a for a in pod['containers'][0]['command'])  # JAX knows


def test_gpus():
  _, it, jobs = manifest('--accelerator=nvidia-h100-80gb', '--nodes=4', '--gpus_per_node=8')
  pod = jobs['template']['spec']['template']['spec']
  it_command = pod['containers'][0]['command']
  # JobSet's name of the first pod: JOBSET-JOB-0-0.JOBSET
  assert f'--coordinator={it["metadata"]["name"]}-{jobs["name"]}-0-0.{it["metadata"]["name"]}:8476' in it_command
  assert '--num_processes=4' in it_command and '--process_id=$(PROCESS_ID)' in it_command
  assert [e['name'] for e in pod['containers'][0]['env']] == ['PROCESS_ID']
  assert {m['name'] for m in pod['containers'][0]['volumeMounts']} == {v['name'] for v in pod['volumes']}
  assert jobs['template']['spec']['parallelism'] == 4


def expanded(text, variables):
  """What Kubernetes makes of an argument: $(NAME) becomes the variable, or stays if there is none, and $$ becomes $."""
  return re.sub(r'\$(\$|\(([A-Za-z_][\w.-]*)\))',
                lambda m: '$' if m[1] == '$' else variables.get(m[2], m[0]), text)


@given(st.text(st.sampled_from('$()NAMEab \'"{}\n:#&*-'), max_size=20))
def test_arguments_are_the_same_words_in_the_pod(text):
  assert expanded(gke.literal(text), dict(NAME='x', A='y', PROCESS_ID='3')) == text


def test_dollars_in_a_manifest():
  argument = "--config.sample.prompts=('$(PROCESS_ID) $$ $HOME $$(A)',)"
  for flags in (['--accelerator=v5e', '--topology=16x16'], ['--accelerator=nvidia-h100-80gb']):
    _, _, jobs = manifest(*flags, argument)
    command = jobs['template']['spec']['template']['spec']['containers'][0]['command']
    seen = [expanded(word, dict(PROCESS_ID='3')) for word in command]
    assert argument in seen and ('--process_id=3' in seen) == ('nvidia' in flags[0])


def test_a_secret_becomes_variables():
  _, _, jobs = manifest('--accelerator=v5e', '--topology=16x16', '--secret=keys')
  container = jobs['template']['spec']['template']['spec']['containers'][0]
  assert container['envFrom'] == [{'secretRef': {'name': 'keys'}}]


@pytest.mark.parametrize('flags', ['--accelerator=v5e --topology=16x16',
                                   '--accelerator=nvidia-h100-80gb --nodes=2'])
def test_exit_codes(flags):
  """What a person has to mend fails the set at once; all else begins anew, a limited number of times."""
  _, it, jobs = manifest(*flags.split(), '--max_restarts=7')
  job, policy = jobs['template']['spec'], it['spec']['failurePolicy']
  assert policy['maxRestarts'] == 7 and job['backoffLimit'] == 0
  [rule] = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob' and rule['onExitCodes']['operator'] == 'In'
  assert rule['onExitCodes']['containerName'] == job['template']['spec']['containers'][0]['name']
  final = {e.exit_code for e in errors.Failure.__subclasses__()} | {errors.Failure.exit_code}
  final -= {errors.Preempted.exit_code, errors.STALLED}
  assert final == set(rule['onExitCodes']['values'])
  assert [r['action'] for r in policy['rules']] == ['FailJobSet']
  assert policy['rules'][0]['onJobFailureReasons'] == ['PodFailurePolicy']


def test_recorded():
  recorded('gke_multislice.yaml', manifest('--accelerator=v5e', '--topology=16x16', '--slices=2', '--spot',
                                           '--config.mesh.slice=2')[0])
  recorded('gke_gpus.yaml', manifest('--accelerator=nvidia-h100-80gb', '--nodes=4', '--queue=local',
                                     '--service_account=trainer')[0])


@pytest.mark.parametrize('flags, message', [
    ('--accelerator=v5e --topology=16', '--topology=16: v5e needs 2 numbers'),
    ('--accelerator=v5e --topology=3x5', '--topology=3x5'), ('--accelerator=v5p --topology=4x4', 'needs 3 numbers'),
    ('--accelerator=v5e --topology=2x2 --slices=2', 'only slices of several hosts'),
    ('--accelerator=tpu --topology=2x2', '--accelerator=tpu: not known'),
    ('--accelerator=v5e --topology=4x4 --name=T5', '--name=T5'),
    ('--accelerator=v5e --topology=4x4 --slices=0', '--slices=0'),
    ('--accelerator=v5e --topology=4x4 --workdir=runs/a', '--workdir=runs/a'),
    ('--accelerator=v5e --topology=4x4 --config.data.directory=here', '--config.data.directory=here'),
    ('--accelerator=v5e --topology=4x4 --config.batch_sizes=4', 'Did you mean batch_size'),
    ('--accelerator=v5e --topology=4x4 train', 'add the flags')])
def test_mistakes(flags, message):
  done = python('gke.py', *RUN, *flags.split())
  assert done.returncode == 2 and message in done.stderr, done.stderr


def test_image_has_what_runs():
  lines = [shlex.split(line) for line in (LAUNCH / 'Dockerfile').read_text().splitlines() if line[:1] not in '# ']
  assert [words[0] for words in lines] == ['FROM', 'ARG', 'WORKDIR', 'COPY', 'RUN']
  assert lines[1][1].removeprefix('EXTRAS=') == 'tpu,gcs' and lines[-1][-1] == '.[${EXTRAS}]'
  extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
  assert {'tpu', 'gcs', 'cuda', 'cuda12'} <= set(extras)
