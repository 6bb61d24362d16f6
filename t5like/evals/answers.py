"""How like its references an answer is: exact match, F1, BLEU, ROUGE."""
import collections
import re
import string


def normalised(text):
  """Lower case, without punctuation, articles and repeated spaces (SQuAD v1.1's evaluation script)."""
  text = ''.join(c for c in text.lower() if c not in string.punctuation)
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def exact_match(answer, references):
  """1.0 if the answer is one of the references, spaces at both ends aside; else 0.0."""
  return float(answer.strip() in [reference.strip() for reference in references])


def f1(answer, references):
  """The best F1 of words with a reference (Rajpurkar et al. 2016, section 6.1); both without any: 1.0."""
  return max(_f1(normalised(answer).split(), normalised(reference).split()) for reference in references)


def _f1(words, others):
  if not words or not others:
    return float(words == others)
  common = sum((collections.Counter(words) & collections.Counter(others)).values())
  return 2 * common / (len(words) + len(others))


def judge(metrics, answers, references):
  """({metric: [a value for each answer] or one value for all}, notes for people).

  answers: [text]; references: [[text]]. exact_match, f1 and rouge (rouge1, rouge2, rougeL: F-measure, stemmed;
  the best of the references) are values from 0 to 1; bleu (sacreBLEU's, of the whole corpus) is from 0 to 100.
  A metric whose package is not there is left out, which a note says.
  """
  found, notes = {}, []
  for metric in metrics:
    try:
      if metric in ('exact_match', 'f1'):
        found[metric] = [dict(exact_match=exact_match, f1=f1)[metric](*pair) for pair in zip(answers, references)]
      elif metric == 'bleu':
        found['bleu'] = _bleu(answers, references)
      else:
        found.update(_rouge(answers, references))
    except ImportError as error:
      notes.append(f"{metric} is left out: it needs the package {error.name}; run: pip install -e '.[eval]'")
  return found, notes


def _bleu(answers, references):
  import sacrebleu
  most = max(map(len, references))
  # sacreBLEU wants as many references for each answer; one that is repeated counts once.
  by_rank = [[r[min(k, len(r) - 1)] for r in references] for k in range(most)]
  return sacrebleu.corpus_bleu(answers, by_rank).score


def _rouge(answers, references):
  from rouge_score import rouge_scorer
  scorer = rouge_scorer.RougeScorer(['rouge1', 'rouge2', 'rougeL'], use_stemmer=True)
  scores = [scorer.score_multi(r, answer) for answer, r in zip(answers, references)]
  return {kind: [score[kind].fmeasure for score in scores] for kind in ('rouge1', 'rouge2', 'rougeL')}
