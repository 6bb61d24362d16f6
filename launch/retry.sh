#!/usr/bin/env bash
# Runs a command again as long as it ends in a way that starting it again mends:
#
#   launch/retry.sh python main.py --config=configs/t5.py:base --workdir=gs://BUCKET/run
#
# 75 is pre-empted or out of time with the state saved, 124 is stalled (t5like/errors.py). Every other exit code is
# passed on at once. SIGTERM and SIGINT reach the command as SIGTERM, on which t5like saves; it is not run again then.
#
#   RETRY_CODES='75 124'   which exit codes are tried again
#   RETRY_TRIES=100        how often the command is run at most
#   RETRY_WAIT=5           seconds before the second try, doubled before each further one up to
#   RETRY_WAIT_MAX=300       this many; a try that lasted RETRY_HEALTHY=600 seconds begins anew with RETRY_WAIT
#   RETRY_RECORD=FILE      append "HOST PROCESS CODE" to this file at the end
#   DRY_RUN=1              only say what would be run
set -uo pipefail

: "${RETRY_CODES:=75 124}" "${RETRY_TRIES:=100}" "${RETRY_WAIT:=5}" "${RETRY_WAIT_MAX:=300}" "${RETRY_HEALTHY:=600}"

if (($# == 0)); then
  echo 'launch/retry.sh: which command? For example: launch/retry.sh python main.py --config=configs/t5.py:base' >&2
  exit 2
fi
if [[ ${DRY_RUN:-} ]]; then
  echo "$(printf '%q ' "$@")# at most $RETRY_TRIES times, again after exit code ${RETRY_CODES// / or }"
  exit 0
fi

say() { echo "retry.sh $(date +%F' '%T): $*" >&2; }

child=''
stopping=''
caught=''
# shellcheck disable=SC2317,SC2329  # run by the trap
forward() {
  stopping=1
  caught=1
  [[ $child ]] && kill -TERM "$child" 2>/dev/null
}
trap forward TERM INT

# Runs a command and leaves its exit code in `code`. In the background, because bash handles signals only between
# foreground commands; `wait` returns early when one comes, and has to be called again then.
run() {
  "$@" &
  child=$!
  [[ $stopping ]] && kill -TERM "$child" 2>/dev/null # told to before $child was known
  while true; do
    caught=''
    wait "$child"
    code=$?
    [[ $caught ]] || break
  done
  child=''
}

pause=$RETRY_WAIT
for ((try = 1; ; try++)); do
  started=$SECONDS
  run "$@"
  if [[ $stopping ]]; then
    say "told to stop; the command ended with exit code $code"
    break
  elif [[ " $RETRY_CODES " != *" $code "* ]]; then
    ((code == 0)) || say "exit code $code is not one of those to try again (${RETRY_CODES// /, })"
    break
  elif ((try >= RETRY_TRIES)); then
    say "exit code $code; this was try $try of $RETRY_TRIES, the last"
    break
  fi
  ((SECONDS - started >= RETRY_HEALTHY)) && pause=$RETRY_WAIT
  say "exit code $code; try $((try + 1)) of $RETRY_TRIES in $pause s"
  ended=$code
  run sleep "$pause"
  code=$ended
  [[ $stopping ]] && break
  pause=$((pause * 2 > RETRY_WAIT_MAX ? RETRY_WAIT_MAX : pause * 2))
done
[[ ${RETRY_RECORD:-} ]] && echo "$(hostname) ${SLURM_PROCID:-0} $code" >>"$RETRY_RECORD"
exit "$code"
