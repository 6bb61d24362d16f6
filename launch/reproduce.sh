#!/usr/bin/env bash
# Trains what docs/baselines.md lists and needs no pod, with several seeds each, and writes mean and spread there.
#
#   launch/reproduce.sh                          all that a laptop can do: a night on two cores
#   launch/reproduce.sh markov.py iid_span.py    only these, 'FILE.py' or 'FILE.py:VARIANT'
#
#   SEEDS=0,1,2                  which seeds
#   DIR=runs/reproduce           where the runs are; the same command again goes on where it stopped
#   SHAKESPEARE=FILE             the text of nanoGPT's character models; without it they are left out
#   GPU=1                        also decoder_shakespeare.py, minutes on a GPU
#   DRY_RUN=1                    check the configs and print the commands, run none
set -euo pipefail
cd "$(dirname "$0")/.."

: "${SEEDS:=0,1,2}" "${DIR:=runs/reproduce}" "${SHAKESPEARE:=tinyshakespeare.txt}" "${GPU:=0}" "${DRY_RUN:=0}"

exact=(markov.py markov.py:masked iid_span.py seq2seq_copy.py seq2seq_copy.py:reverse)
tiny=(decoder_tiny.py encoder_tiny.py encdec_tiny.py ul2_tiny.py seq2seq_tiny.py)
tuned=(finetune_summarize.py finetune_translate.py finetune_classify.py)  # :tiny and :tiny_scratch, after encdec_tiny.py
if (($# == 0)); then
  set -- "${exact[@]}" decoder_shakespeare.py:cpu "${tiny[@]}" "${tuned[@]/%/:tiny}" "${tuned[@]/%/:tiny_scratch}"
  if [[ $GPU == 1 ]]; then
    set -- "$@" decoder_shakespeare.py
  fi
fi

dry=()
if [[ $DRY_RUN == 1 ]]; then dry=(--dry_run); fi
failed=()
for name; do
  config=configs/$name extra=()
  case $name in
    decoder_shakespeare.py | decoder_shakespeare.py:cpu)
      if [[ ! -f $SHAKESPEARE ]]; then
        echo "$name is left out: there is no $SHAKESPEARE. Set SHAKESPEARE to the file of nanoGPT's shakespeare_char."
        continue
      fi
      extra=("--config.data.source=text:$SHAKESPEARE") ;;
    finetune_*:tiny*)  # all begin with the same weights, or none; what differs is the order of data
      if [[ ! -e runs/encdec_tiny/result.json && $DRY_RUN != 1 ]]; then
        python main.py --config=configs/encdec_tiny.py
      fi ;;
  esac
  echo "== $name"
  python launch/sweep.py --config="$config" --dir="$DIR/$name" "${dry[@]}" "${extra[@]}" "seed=$SEEDS" || failed+=("$name")
done
if [[ $DRY_RUN != 1 ]]; then
  python docs/baselines.py "$DIR"
fi
if ((${#failed[@]})); then
  echo "Not done: ${failed[*]}. The same command goes on." >&2
  exit 1
fi
