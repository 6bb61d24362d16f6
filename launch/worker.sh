#!/usr/bin/env bash
# What launch/tpu_vm.sh asks of every host of a pod, in the folder that `setup` unpacked there:
#
#   launch/worker.sh start COMMAND ...   runs it under retry.sh in the background, output to ~/t5like.log
#   launch/worker.sh stop [SECONDS]      SIGTERM, then waits this long (300) until the state is saved
#   launch/worker.sh state               one word: running, ended (with the exit code), none
#
# ~/t5like.pid holds the id of the running retry.sh, ~/t5like.exit what the last run ended with, ~/.t5like.env the
# secrets that launch/tpu_vm.sh has sent.
set -euo pipefail

log=~/t5like.log pid=~/t5like.pid end=~/t5like.exit secrets=~/.t5like.env

# Ids are used again, after a reboot at the latest: the process must be ours.
running() { [[ -f $pid ]] && tr '\0' ' ' <"/proc/$(cat "$pid")/cmdline" 2>/dev/null | grep -q 'launch/retry.sh'; }

case ${1:-} in
  start)
    shift
    if running; then
      echo "$(hostname): a run is on already (process $(cat "$pid")). Stop it first: launch/tpu_vm.sh stop" >&2
      exit 1
    fi
    rm -f "$end"
    if [[ -f $secrets ]]; then
      chmod 600 "$secrets"
      # shellcheck source=/dev/null
      source "$secrets"
    fi
    # 134 too: when one host of a pod ends, JAX aborts the others, which have to come back with it.
    RETRY_RECORD=$end RETRY_CODES=${RETRY_CODES:-75 124 134} \
      setsid nohup launch/retry.sh "$@" >>"$log" 2>&1 </dev/null &
    echo $! >"$pid"
    ;;
  stop)
    running || exit 0
    kill -TERM "$(cat "$pid")"
    for ((i = 0; i < ${2:-300}; i++)); do
      running || { echo "$(hostname): stopped"; exit 0; }
      sleep 1
    done
    echo "$(hostname): not stopped after ${2:-300} s; see the end of ~/t5like.log, or kill -9 $(cat "$pid")" >&2
    exit 1
    ;;
  state)
    if running; then
      echo running
    elif [[ -f $end ]]; then
      echo "ended $(awk '{print $NF}' "$end")"
    else
      echo none
    fi
    ;;
  *)
    echo 'launch/worker.sh: start COMMAND ..., stop [SECONDS] or state' >&2
    exit 2
    ;;
esac
