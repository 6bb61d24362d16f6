"""How like its references an answer is: exact match, F1, BLEU, ROUGE."""
import collections
import re
import string
from collections.abc import Callable, Sequence

Judged = dict[str, float | list[float]]  # {metric: a value for each answer, or one for all}
Judge = Callable[[Sequence[str], Sequence[Sequence[str]]], Judged]

ROUGE = ('rouge1', 'rouge2', 'rougeL')


def normalised(text: str) -> str:
  """Lower case, without punctuation, articles and repeated spaces (SQuAD v1.1's evaluation script)."""
  letters = [c for c in text.lower() if c not in string.punctuation]
  without_articles = re.sub(r'\b(a|an|the)\b', ' ', ''.join(letters))
  return ' '.join(without_articles.split())


def exact_match(answer: str, references: Sequence[str]) -> float:
  """1.0 if the answer is one of the references, spaces at both ends aside; else 0.0."""
  stripped = [reference.strip() for reference in references]
  return float(answer.strip() in stripped)


def f1(answer: str, references: Sequence[str]) -> float:
  """The best F1 of words with a reference (Rajpurkar et al. 2016, section 6.1); both without any: 1.0."""
  words = normalised(answer).split()
  return max(_f1(words, normalised(reference).split()) for reference in references)


def _f1(words: list[str], others: list[str]) -> float:
  if not words or not others:
    return float(words == others)
  shared = collections.Counter(words) & collections.Counter(others)
  common = sum(shared.values())
  return 2 * common / (len(words) + len(others))


def judge(
    metrics: Sequence[str],
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
) -> tuple[Judged, list[str]]:
  """Values of metrics, and notes for people.

  exact_match, f1 and rouge (rouge1, rouge2, rougeL: F-measure, stemmed; the best of the references) are values from 0
  to 1; bleu (sacreBLEU's, of the whole corpus) is from 0 to 100. A metric whose package is missing is left out, which
  a note says.

  Args:
    metrics: keys of METRICS.
    answers: texts.
    references: texts that each answer is compared with.

  Returns:
    ({metric: a list with a value for each answer, or one value for all}, notes).
  """
  values: Judged = {}
  notes = []
  for metric in metrics:
    try:
      values.update(METRICS[metric](answers, references))
    except ImportError as error:
      notes.append(f"{metric} is left out: it needs the package {error.name}; run: pip install -e '.[eval]'")
  return values, notes


def _exact_matches(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Judged:
  return dict(exact_match=list(map(exact_match, answers, references)))


def _f1s(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Judged:
  return dict(f1=list(map(f1, answers, references)))


def _bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Judged:
  import sacrebleu
  most = max(map(len, references))
  # sacreBLEU wants as many references for each answer; one that is repeated counts once.
  by_rank = []
  for rank in range(most):
    by_rank.append([texts[min(rank, len(texts) - 1)] for texts in references])
  return dict(bleu=sacrebleu.corpus_bleu(answers, by_rank).score)


def _rouge(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Judged:
  from rouge_score import rouge_scorer
  scorer = rouge_scorer.RougeScorer([*ROUGE], use_stemmer=True)
  scores = list(map(scorer.score_multi, references, answers))
  values: Judged = {}
  for kind in ROUGE:
    values[kind] = [score[kind].fmeasure for score in scores]
  return values


METRICS: dict[str, Judge] = dict(exact_match=_exact_matches, f1=_f1s, bleu=_bleu, rouge=_rouge)
