"""How like its references an answer is: exact match, F1, BLEU, ROUGE."""
import collections
import re
import string
from collections.abc import Callable, Sequence

Texts = Sequence[str]
Judged = dict[str, float | list[float]]  # {metric: a value for each answer, or one for all}
Judge = Callable[[Texts, Sequence[Texts]], Judged]  # of answers and the references of each

ROUGE = ('rouge1', 'rouge2', 'rougeL')
ARTICLES = re.compile(r'\b(a|an|the)\b')


def normalised(text: str) -> str:
  """Lower case, without punctuation, articles and repeated spaces (SQuAD v1.1's evaluation script)."""
  letters = [c for c in text.lower() if c not in string.punctuation]
  without_punctuation = ''.join(letters)
  without_articles = ARTICLES.sub(' ', without_punctuation)
  words = without_articles.split()
  return ' '.join(words)


def exact_match(answer: str, references: Texts) -> float:
  """1.0 if the answer is one of the references, spaces at both ends aside; else 0.0."""
  stripped = [reference.strip() for reference in references]
  return float(answer.strip() in stripped)


def f1(answer: str, references: Texts) -> float:
  """The best F1 of words with a reference (Rajpurkar et al. 2016, section 6.1); both without any: 1.0."""
  words = normalised(answer).split()
  values = []
  for reference in references:
    reference_words = normalised(reference).split()
    values.append(_f1(words, reference_words))
  return max(values)


def _f1(words: list[str], others: list[str]) -> float:
  if not words or not others:
    return float(words == others)
  counts = collections.Counter(words)
  shared = counts & collections.Counter(others)
  common = sum(shared.values())
  total = len(words) + len(others)
  return 2 * common / total


def judge(
    metrics: Sequence[str],
    answers: Texts,
    references: Sequence[Texts],
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
    judge_answers = METRICS[metric]
    try:
      values.update(judge_answers(answers, references))
    except ImportError as error:
      notes.append(f"{metric} is left out: it needs the package {error.name}; run: pip install -e '.[eval]'")
  return values, notes


def _exact_matches(answers: Texts, references: Sequence[Texts]) -> Judged:
  values = list(map(exact_match, answers, references))
  return dict(exact_match=values)


def _f1s(answers: Texts, references: Sequence[Texts]) -> Judged:
  values = list(map(f1, answers, references))
  return dict(f1=values)


def _bleu(answers: Texts, references: Sequence[Texts]) -> Judged:
  import sacrebleu
  most = max(map(len, references))
  by_rank = []
  for rank in range(most):
    by_rank.append([_reference(texts, rank) for texts in references])
  bleu = sacrebleu.corpus_bleu(answers, by_rank)
  return dict(bleu=bleu.score)


def _reference(texts: Texts, rank: int) -> str:
  """The reference with a number; the last of them in place of those that an answer does not have.

  sacreBLEU takes equally many references for each answer, and one that is repeated counts once.
  """
  last = len(texts) - 1
  return texts[min(rank, last)]


def _rouge(answers: Texts, references: Sequence[Texts]) -> Judged:
  from rouge_score import rouge_scorer
  scorer = rouge_scorer.RougeScorer([*ROUGE], use_stemmer=True)
  scores = list(map(scorer.score_multi, references, answers))
  values: Judged = {}
  for kind in ROUGE:
    values[kind] = [score[kind].fmeasure for score in scores]
  return values


METRICS: dict[str, Judge] = dict(
    exact_match=_exact_matches,
    f1=_f1s,
    bleu=_bleu,
    rouge=_rouge,
)
