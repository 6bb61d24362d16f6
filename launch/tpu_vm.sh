#!/usr/bin/env bash
# Cloud TPU slices through queued resources, from the machine that you sit at (gcloud has to be set up there).
#
#   export NAME=pod ZONE=us-west4-a TYPE=v5litepod-256
#   launch/tpu_vm.sh create             ask for the slices; comes back at once
#   launch/tpu_vm.sh wait               until they are there
#   launch/tpu_vm.sh setup              send this commit to all hosts and install it
#   launch/tpu_vm.sh run --config=configs/decoder_1b.py --workdir=gs://BUCKET/run ...    python main.py ... on all hosts
#   launch/tpu_vm.sh logs | status      of host 0 (or NODE=1 WORKER=3): its log, as it grows; how things stand
#   launch/tpu_vm.sh stop               SIGTERM on all hosts: the state is saved, `run` goes on from it
#   launch/tpu_vm.sh delete             give the slices back
#   launch/tpu_vm.sh keep --config=...  all of these until the run is done, again whenever the slices are taken away
#
# Settings are environment variables, or flags before the command (--name=pod --spot --dry_run):
#
#   NAME, ZONE        of the queued resource; needed          PROJECT  gcloud's own by default
#   TYPE              v5litepod-256, v5p-128, v6e-64, ...     VERSION  of the TPU software, by TYPE
#   SLICES=1          as many slices of TYPE each             SPOT=1   cheap, and taken away when others pay
#   FLEX_START=24h    slices that come when there is room, for at most this long (7 days), instead of SPOT
#   SECRETS           names of variables that `run` hands to the hosts, such as 'WANDB_API_KEY HF_TOKEN': in a file that
#                     only you can read, never on a command line
#   CREATE_FLAGS      further flags of `create`, such as '--network=NET --service-account=ACCOUNT'
#   REPO, REF         the repository (this one) and what of it is sent (HEAD); EXTRAS='tpu,gcs' of pyproject.toml; PYTHON=3.12
#   RETRY_...         see launch/retry.sh
#   DRY_RUN=1         print every command, to be pasted, and run none
#
# JAX finds its hosts, and libtpu its slices, in the metadata of the machines: nothing has to be set for either.
set -euo pipefail

REPO=${REPO:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}

fail() {
  echo "ERROR: $*" >&2
  exit 2
}

settings() {
  while [[ ${1:-} == --* ]]; do
    local key=${1%%=*} value=1
    [[ $1 == *=* ]] && value=${1#*=}
    key=${key#--}
    case $key in
      name | zone | project | type | version | slices | spot | flex_start | secrets | repo | ref | extras | python | \
        node | worker | dry_run | create_flags) printf -v "${key^^}" %s "$value" ;;
      *) fail "launch/tpu_vm.sh $1: no such setting. There are --name, --zone, --project, --type, --version, --slices," \
        '--spot, --flex_start, --secrets, --create_flags, --repo, --ref, --extras, --python, --node, --worker and --dry_run; flags of main.py' \
        'come after the command: launch/tpu_vm.sh run --config=...' ;;
    esac
    shift
  done
  COMMAND=${1:-}
  shift || true
  ARGUMENTS=("$@")
  [[ ${NAME:-} && ${ZONE:-} ]] || fail "launch/tpu_vm.sh $COMMAND: NAME and ZONE are needed, for example" \
    'NAME=pod ZONE=us-west4-a, as environment variables or as --name=pod --zone=us-west4-a.'
  TYPE=${TYPE:-v5litepod-8}
  SLICES=${SLICES:-1}
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "SLICES=$SLICES: needs a whole number from 1 on."
  [[ ! ${FLEX_START:-} || ! ${SPOT:-} || $SPOT == 0 ]] || fail "FLEX_START=$FLEX_START SPOT=$SPOT: slices are had in" \
    'one way or the other. Set one of them.'
  [[ ! ${FLEX_START:-} || $FLEX_START =~ ^[1-9][0-9]*[smhd]$ ]] || fail "FLEX_START=$FLEX_START: needs a duration of at" \
    'most 7 days, such as 24h.'
  local secret
  for secret in ${SECRETS:-}; do
    [[ $secret =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "SECRETS=$SECRETS: these are names of variables, such as" \
      "'WANDB_API_KEY HF_TOKEN', not their values."
    [[ ${!secret:-} ]] || fail "SECRETS=$SECRETS: the variable $secret is not set. export $secret=... before."
  done
  case $TYPE in
    7x-* | tpu7x-*) fail "TYPE=$TYPE: Google Cloud offers these on Kubernetes only. launch/gke.py --accelerator=7x" \
      'starts runs there.' ;;
    v5litepod-*) VERSION=${VERSION:-v2-alpha-tpuv5-lite} ;;
    v5p-*) VERSION=${VERSION:-v2-alpha-tpuv5} ;;
    v6e-*) VERSION=${VERSION:-v2-alpha-tpuv6e} ;;
    v2-* | v3-* | v4-*) VERSION=${VERSION:-tpu-ubuntu2204-base} ;;
    *) [[ ${VERSION:-} ]] || fail "TYPE=$TYPE: its TPU software is not known here. Give VERSION too, or one of" \
      'v5litepod-N, v5p-N, v6e-N, v4-N.' ;;
  esac
  # These two become part of a command that a shell on the hosts reads.
  [[ ${EXTRAS:-} =~ ^[A-Za-z0-9_,.-]*$ ]] || fail "EXTRAS=$EXTRAS: needs names of pyproject.toml's extras, such as tpu,gcs."
  [[ ${PYTHON:-} =~ ^[A-Za-z0-9._+-]*$ ]] || fail "PYTHON=$PYTHON: needs a version, such as 3.12."
  WHERE=(--zone="$ZONE")
  [[ ${PROJECT:-} ]] && WHERE+=(--project="$PROJECT")
  return 0
}

# What stands for the folder of temporary files in a dry run, where `quoted` makes "$folder" of it.
FOLDER=':folder:'

# One line that a shell reads as the same words.
quoted() {
  local word line=''
  for word in "$@"; do
    if [[ $word == "$FOLDER"/* ]]; then
      word="\"\$folder\"/${word#"$FOLDER"/}"
    elif [[ ! $word =~ ^[A-Za-z0-9_./:=@,+%-]+$ ]]; then
      word=${word@Q}
    fi
    line+=" $word"
  done
  echo "${line:1}"
}

do_() {
  if [[ ${DRY_RUN:-} ]]; then
    quoted "$@"
  else
    quoted + "$@" >&2
    "$@"
  fi
}

resources() { do_ gcloud compute tpus queued-resources "$1" "$NAME" "${WHERE[@]}" "${@:2}"; }

on_all() { resources ssh --node=all --worker=all --command="$1"; }
on_one() { resources ssh --node="${NODE:-0}" --worker="${WORKER:-0}" --command="$1"; }

state() { gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" '--format=value(state.state)'; }

create() {
  local track=() nodes=(--node-id="$NAME") how=()
  ((SLICES > 1)) && nodes=(--node-count="$SLICES" --node-prefix="$NAME")
  [[ ${SPOT:-} && $SPOT != 0 ]] && how=(--spot)
  if [[ ${FLEX_START:-} ]]; then # which gcloud has on its alpha track
    track=(alpha)
    how=(--provisioning-model=flex-start --max-run-duration="$FLEX_START")
  fi
  # shellcheck disable=SC2086  # several flags in one variable
  do_ gcloud "${track[@]}" compute tpus queued-resources create "$NAME" "${WHERE[@]}" --accelerator-type="$TYPE" \
    --runtime-version="$VERSION" "${nodes[@]}" "${how[@]}" ${CREATE_FLAGS:-}
}

wait_() {
  if [[ ${DRY_RUN:-} ]]; then
    resources describe '--format=value(state.state)'
    return
  fi
  local now before=''
  while now=$(state); do
    [[ $now != "$before" ]] && echo "$NAME: $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        fail "NAME=$NAME is $now: these slices do not come (back). launch/tpu_vm.sh delete, and create anew; gcloud" \
          "compute tpus queued-resources describe $NAME --zone=$ZONE says why." ;;
    esac
    sleep "${POLL:-30}"
  done
  return 1
}

setup() {
  if [[ ! ${REF:-} ]]; then
    local changed
    changed=$(git -C "$REPO" status --porcelain | head -n 1)
    # A pod that runs what no commit holds cannot be repeated.
    [[ ! $changed ]] || fail "REPO=$REPO has changes that are not committed, such as ${changed:3}." \
      "Commit them, or send the last commit as it is: REF=HEAD launch/tpu_vm.sh setup."
  fi
  with_folder send_and_install
}

# Calls a function with a new folder, which only you can read and nobody else can write to: a known name in /tmp might
# be a link that somebody has put there.
with_folder() {
  local folder=$FOLDER code=0
  if [[ ${DRY_RUN:-} ]]; then
    echo "folder=\$(mktemp -d)"
    "$1" "$folder"
    echo "rm -r \"\$folder\""
    return
  fi
  folder=$(mktemp -d)
  # shellcheck disable=SC2064  # as it is named now
  trap "rm -rf ${folder@Q}" EXIT
  "$1" "$folder" || code=$?
  rm -r "$folder"
  return "$code"
}

send() { do_ gcloud compute tpus queued-resources scp "$1" "$NAME:$2" "${WHERE[@]}" --node=all --worker=all; }

send_secrets() {
  local file=$1/t5like.env secret
  if [[ ${DRY_RUN:-} ]]; then
    printf '%s\n' "for secret in $SECRETS; do printf 'export %s=%q\n' \$secret \"\${!secret}\"; done > \"\$folder\"/t5like.env"
    echo "chmod 600 \"\$folder\"/t5like.env"
  else
    (
      umask 077
      for secret in $SECRETS; do
        printf 'export %s=%q\n' "$secret" "${!secret}"
      done >"$file"
    )
  fi
  send "$file" .t5like.env
}

send_and_install() {
  local file=$1/t5like.tar.gz venv="\$HOME/t5like-venv" uv="\$HOME/.local/bin/uv"
  local python=${PYTHON:-3.12} package=".[${EXTRAS:-tpu,gcs}]"
  do_ git -C "$REPO" archive --format=tar.gz --output "$file" "${REF:-HEAD}" &&
    send "$file" t5like.tar.gz &&
    # Prepared data and runs on the hosts' own disks stay. TPU machines come with Python 3.10: uv brings a newer one.
    on_all "set -e; mkdir -p t5like; cd t5like;\
 find . -mindepth 1 -maxdepth 1 ! -name prepared ! -name runs -exec rm -rf {} +; tar -xzf ../t5like.tar.gz;\
 python3 -m pip install --quiet --user uv; $uv venv --quiet --allow-existing --python $(quoted "$python") $venv;\
 $uv pip install --quiet --python $venv/bin/python -e ${package@Q}; $venv/bin/python -c 'import jax, t5like'"
}

start() {
  ((${#ARGUMENTS[@]})) || fail "launch/tpu_vm.sh $COMMAND: which run? Add the flags of main.py, such as" \
    '--config=configs/decoder_1b.py --workdir=gs://BUCKET/run.'
  [[ " ${ARGUMENTS[*]}" == *' --workdir=gs://'* ]] || fail "launch/tpu_vm.sh $COMMAND ${ARGUMENTS[*]}: the hosts" \
    'share no disk, and theirs end with the slices. Add --workdir=gs://BUCKET/run.'
  [[ ! ${SECRETS:-} ]] || with_folder send_secrets
  local name retry=()
  for name in "${!RETRY_@}"; do
    retry+=("$name=${!name@Q}")
  done
  on_all "cd t5like && ${retry[*]}${retry:+ }launch/worker.sh start \$HOME/t5like-venv/bin/python main.py $(
    quoted "${ARGUMENTS[@]}")"
}

status() {
  if [[ ${DRY_RUN:-} ]]; then
    resources describe '--format=value(state.state)'
  else
    local now
    now=$(state)
    echo "$NAME: $now"
    [[ $now == ACTIVE ]] || return 0
  fi
  on_one 'cd t5like && launch/worker.sh state; tail -n 1 ~/t5like.log'
}

# Slices that are taken away are asked for anew; a run that ended for good ends this too, with its exit code.
keep() {
  local look='if [ -x t5like/launch/worker.sh ]; then cd t5like && launch/worker.sh state; else echo none; fi'
  if [[ ${DRY_RUN:-} ]]; then
    resources delete --force --quiet
    create
    wait_
    setup
    start
    on_one "$look"
    return
  fi
  local now begun=''
  while true; do
    now=$(state 2>/dev/null || echo NONE)
    [[ $now == ACTIVE ]] && now=$(on_one "$look" || echo 'no answer')
    [[ ! $begun && $now == ended* ]] && now=none # that was another run
    case $now in
      NONE) create || true ;;
      FAILED | SUSPENDED) resources delete --force --quiet || true ;;
      none) setup && start && begun=1 || true ;;
      'ended 75' | 'ended 124' | 'ended 134') start || true ;;
      ended*)
        echo "$NAME: the run $now"
        exit "${now#ended }"
        ;;
      *) ;; # waiting, running, or a line that is down: the next look tells
    esac
    sleep "${POLL:-60}"
  done
}

settings "$@"
case $COMMAND in
  create) create ;;
  wait) wait_ ;;
  setup) setup ;;
  run) start ;;
  logs) on_one 'tail -n 100 -F ~/t5like.log' ;;
  status) status ;;
  stop) on_all 'cd t5like && launch/worker.sh stop' ;;
  delete) resources delete --force --quiet ;;
  keep) keep ;;
  *) fail "launch/tpu_vm.sh $COMMAND: no such command. There are create, wait, setup, run, logs, status, stop, delete" \
    'and keep; the head of launch/tpu_vm.sh says what they do.' ;;
esac
