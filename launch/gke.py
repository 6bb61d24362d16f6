"""Prints the manifest of a run on Google Kubernetes Engine, as a JobSet; it touches no cluster.

    python launch/gke.py --name=t5 --accelerator=v5e --topology=16x16 --slices=2 --image=REGISTRY/t5like \\
        --config=configs/t5.py:base --workdir=gs://BUCKET/run --config.data.directory=gs://BUCKET/prepared \\
        --config.mesh.slice=2 | kubectl apply -f -

    python launch/gke.py --name=t5 --accelerator=nvidia-h100-80gb --nodes=4 --gpus_per_node=8 --image=... --config=...

Flags that are not listed by --help are those of main.py. launch/Dockerfile makes the image. The cluster needs JobSet
0.6 or later, and a node pool for each slice, of machines with 4 chips (ct5lp-hightpu-4t, ct5p-hightpu-4t,
ct6e-standard-4t, ct4p-hightpu-4t, tpu7x-standard-4t) unless the slice has fewer. --secret names a Secret of Kubernetes
whose keys, such as WANDB_API_KEY and HF_TOKEN, become variables of the run (docs/pods.md).

All pods begin anew, from the newest checkpoint, when one of them ends in a way that time heals: 75 (pre-empted),
124 (stalled), lost with its machine, or aborted by JAX because a peer was. The exit codes that only a person can
mend fail the whole set at once. retry.sh has no place here: all hosts have to begin together.
"""
import argparse
import math
import pathlib
import re
import sys

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from t5like import config as config_lib
from t5like.errors import ConfigError

# Name on the command line -> value of the node label, dimensions of its topologies.
TPUS = {'v4': ('tpu-v4-podslice', 3), 'v5e': ('tpu-v5-lite-podslice', 2), 'v5p': ('tpu-v5p-slice', 3),
        'v6e': ('tpu-v6e-slice', 2), '7x': ('tpu7x', 3)}
ALIASES = {'tpu7x': '7x', 'ironwood': '7x', 'trillium': 'v6e', 'v5litepod': 'v5e'}
CHIPS_PER_HOST = 4
# t5like's exit codes for mistakes and for faults (t5like/errors.py). A list of those that are final, not of 75 and
# 124: when a host is lost, its peers end with 134, 137 or 143, and Kubernetes may see them first.
FINAL = [1, 2, 3, 4, 5]
PORT = 8476


def parse(argv):
  parser = argparse.ArgumentParser('launch/gke.py', allow_abbrev=False,
                                   description='Other flags are those of main.py, such as --config and --workdir.')
  parser.add_argument('--name', required=True, help='of the JobSet')
  parser.add_argument('--image', required=True, help='see launch/Dockerfile')
  parser.add_argument('--accelerator', required=True, help=f'{", ".join(TPUS)}, or the label of a GPU')
  parser.add_argument('--topology', default='', help='of a TPU slice: 16x16, 4x4x8, ...')
  parser.add_argument('--slices', type=int, default=1)
  parser.add_argument('--nodes', type=int, default=1, help='GPUs only')
  parser.add_argument('--gpus_per_node', type=int, default=8)
  parser.add_argument('--spot', action='store_true')
  parser.add_argument('--max_restarts', type=int, default=100)
  parser.add_argument('--queue', default='', help='a LocalQueue of Kueue')
  parser.add_argument('--service_account', default='', help='of Kubernetes, with access to the buckets')
  parser.add_argument('--secret', default='', help='a Secret of Kubernetes whose keys become variables of the run')
  return parser.parse_known_args(argv)


def check(args, rest):
  """The config of the run; ConfigError when it, or what it would run on, cannot work."""
  if not re.fullmatch(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?', args.name):
    raise ConfigError(f'--name={args.name}: Kubernetes takes up to 40 small letters, digits and - here, a letter '
                      'first. Such as --name=t5-base.')
  for flag in ('slices', 'nodes', 'gpus_per_node'):
    if getattr(args, flag) < 1:
      raise ConfigError(f'--{flag}={getattr(args, flag)}: needs a whole number from 1 on.')
  flags = dict(a.lstrip('-').split('=', 1) for a in rest if a.startswith('--') and '=' in a)
  others = [a for a in rest if not a.startswith('--')]
  if others or 'config' not in flags:
    raise ConfigError(f'launch/gke.py {" ".join(others)}: add the flags of main.py, such as '
                      '--config=configs/t5.py:base, each as --flag=value.')
  overrides = [a.removeprefix('--config.') for a in rest if a.startswith('--config.')]
  config = config_lib.load(flags['config'], overrides)
  for flag, value in (('workdir', flags.get('workdir', '')), ('config.data.directory', config.data.directory)):
    if '://' not in value:
      raise ConfigError(f"--{flag}={value}: a pod's own disk ends with it, and others cannot see it. Give a bucket, "
                        f'such as --{flag}=gs://BUCKET/{flag.split(".")[-1]}.')
  return config


def tpu_hosts(args):
  """Hosts of a slice and TPU chips of each."""
  dimensions = TPUS[args.accelerator][1]
  sizes = [int(n) for n in args.topology.split('x')] if re.fullmatch(r'\d+(x\d+)*', args.topology) else []
  chips = math.prod(sizes)
  if len(sizes) != dimensions or not chips or chips > CHIPS_PER_HOST and chips % CHIPS_PER_HOST:
    raise ConfigError(f'--topology={args.topology}: {args.accelerator} needs {dimensions} numbers whose product is '
                      f'{CHIPS_PER_HOST} times the number of hosts, such as {"16x16" if dimensions == 2 else "4x4x8"}.')
  per_host = min(chips, CHIPS_PER_HOST)
  if args.slices > 1 and chips == per_host:
    raise ConfigError(f'--slices={args.slices} --topology={args.topology}: GKE joins only slices of several hosts. '
                      'A larger topology in one slice does what this would.')
  return chips // per_host, per_host


def manifest(args, rest):
  """The JobSet as a dict."""
  check(args, rest)
  tpu = args.accelerator in TPUS
  if not tpu and not args.accelerator.startswith('nvidia-'):
    raise ConfigError(f'--accelerator={args.accelerator}: not known. Use {", ".join(TPUS)}, or the value of the node '
                      'label cloud.google.com/gke-accelerator, such as nvidia-h100-80gb.')
  hosts, per_host = tpu_hosts(args) if tpu else (args.nodes, args.gpus_per_node)
  pod = (tpu_pod if tpu else gpu_pod)(args, rest, per_host)
  selector = pod['nodeSelector']
  if args.spot:
    selector['cloud.google.com/gke-spot'] = 'true'
  if args.service_account:
    pod['serviceAccountName'] = args.service_account
  job = dict(
      parallelism=hosts, completions=hosts, completionMode='Indexed', backoffLimit=0,
      podFailurePolicy=dict(rules=[dict(
          action='FailJob', onExitCodes=dict(containerName='t5like', operator='In', values=FINAL))]),
      template=dict(spec=pod))
  metadata = dict(name=args.name)
  if args.queue:
    metadata['labels'] = {'kueue.x-k8s.io/queue-name': args.queue}
  if tpu:  # one slice, one node pool
    metadata['annotations'] = {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}
  return dict(
      apiVersion='jobset.x-k8s.io/v1alpha2', kind='JobSet', metadata=metadata,
      spec=dict(
          failurePolicy=dict(maxRestarts=args.max_restarts, rules=[dict(
              name='final', action='FailJobSet', onJobFailureReasons=['PodFailurePolicy'])]),
          replicatedJobs=[dict(name='slice' if tpu else 'gpus', replicas=args.slices if tpu else 1,
                               template=dict(spec=job))]))


def literal(argument):
  """An argument that Kubernetes leaves as it is, which would put a variable in the place of $(NAME), and $ of $$."""
  return argument.replace('$', '$$')


def container(args, rest, resource, count, join=()):
  """`join`: flags in which Kubernetes fills in $(VARIABLES)."""
  secret = dict(envFrom=[dict(secretRef=dict(name=args.secret))]) if args.secret else {}
  return dict(
      secret, name='t5like', image=args.image,
      # Python itself is the first process, so that SIGTERM reaches it.
      command=['python', 'main.py', *map(literal, rest), *join],
      resources=dict(requests={resource: count}, limits={resource: count}))


def tpu_pod(args, rest, chips):
  # GKE tells JAX which hosts there are, and sets MEGASCALE_... for several slices.
  label = TPUS[args.accelerator][0]
  return dict(
      restartPolicy='Never', terminationGracePeriodSeconds=300,  # as long as a save may take
      hostNetwork=True, dnsPolicy='ClusterFirstWithHostNet',  # a layer less between slices
      nodeSelector={'cloud.google.com/gke-tpu-accelerator': label, 'cloud.google.com/gke-tpu-topology': args.topology},
      containers=[container(args, rest, 'google.com/tpu', chips)])


def gpu_pod(args, rest, gpus):
  join = [f'--coordinator={args.name}-gpus-0-0.{args.name}:{PORT}', f'--num_processes={args.nodes}',
          '--process_id=$(PROCESS_ID)']  # Kubernetes fills it in
  it = container(args, rest, 'nvidia.com/gpu', gpus, join)
  index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  it['env'] = [dict(name='PROCESS_ID', valueFrom=dict(fieldRef=dict(fieldPath=index)))]
  it['volumeMounts'] = [dict(name='shm', mountPath='/dev/shm')]  # NCCL's; the default of 64 MiB is too small
  return dict(
      restartPolicy='Never', terminationGracePeriodSeconds=300,
      nodeSelector={'cloud.google.com/gke-accelerator': args.accelerator},
      tolerations=[dict(key='nvidia.com/gpu', operator='Exists', effect='NoSchedule')],
      containers=[it], volumes=[dict(name='shm', emptyDir=dict(medium='Memory'))])


def main(argv):
  args, rest = parse(argv)
  args.accelerator = ALIASES.get(args.accelerator, args.accelerator)
  try:
    print(yaml.safe_dump(manifest(args, rest), sort_keys=False, width=120), end='')
  except ConfigError as e:
    print(f'\nERROR: {e}', file=sys.stderr)
    return e.exit_code
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
