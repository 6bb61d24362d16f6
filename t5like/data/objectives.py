"""Objectives: functions of windows of tokens that return what a model reads and predicts. Numpy only.

A batch is a dict of [B, T] arrays: `inputs`, `targets`, `positions`, `segments` (int32; segment 0 is
padding) and `weights` (float32, 0 where there is nothing to predict).
"""
import numpy as np

BOS = 0  # the padding id starts every segment, as T5's decoders do
MISSING = -1  # the store marks with it what lies beyond the last token


def causal_length(seq_len, document_mask):
  """Tokens of text that make a row of seq_len predictions."""
  return seq_len if document_mask else seq_len + 1


def causal(tokens_BT, *, document_mask, eos_id):
  """Next-token prediction on windows cut from a stream of documents, each ended by EOS.

  document_mask: segments end with their EOS and do not see each other; each is predicted whole, its
    first input being BOS, never the EOS of the segment before (seqio's LMFeatureConverter).
  otherwise: windows hold one token more, input t predicts token t + 1, and text runs on over the
    ends of documents (GPT-2).
  """
  if not document_mask:
    inputs, targets = tokens_BT[:, :-1], tokens_BT[:, 1:]
    there = targets != MISSING
    return dict(
        inputs=np.where(inputs == MISSING, BOS, inputs), targets=np.where(there, targets, 0),
        weights=there.astype(np.float32),
        positions=np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape).copy(),
        segments=there.astype(np.int32))
  there = tokens_BT != MISSING
  starts = np.ones_like(there)
  starts[:, 1:] = tokens_BT[:, :-1] == eos_id
  before = np.zeros_like(tokens_BT)
  before[:, 1:] = tokens_BT[:, :-1]
  index_T = np.arange(tokens_BT.shape[1], dtype=np.int32)
  first = np.maximum.accumulate(np.where(starts, index_T, 0), axis=1)
  return dict(
      inputs=np.where(starts | ~there, BOS, before), targets=np.where(there, tokens_BT, 0),
      weights=there.astype(np.float32), positions=(index_T - first).astype(np.int32),
      segments=np.where(there, np.cumsum(starts, axis=1, dtype=np.int32), 0).astype(np.int32))
