"""EleutherAI's lm-evaluation-harness on our models: its tasks, our log-likelihoods and text.

    python main.py evaluate --workdir=runs/decoder_tiny --tasks=harness:lambada_openai

Its tasks fetch their data as they see fit; those of --harness_path, a folder of task files, may lie on disk.
"""
from t5like.errors import ConfigError
from t5like.evals.evaluate import describe, ended


def language_model(subject):
  """An lm_eval LM that asks an `evaluate.Subject`. Each kind of model is asked as ask.py says."""
  from lm_eval.api.model import LM

  class Ours(LM):

    def loglikelihood(self, requests, disable_tqdm=False):
      """[(log-likelihood of the continuation, whether it is greedy)] of requests (context, continuation)."""
      return [(s.logp, s.greedy) for s in subject.scorer.score([request.args[:2] for request in requests])]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
      """[log-likelihood] of whole texts."""
      return [s.logp for s in subject.scorer.score_text([request.args[0] for request in requests])]

    def generate_until(self, requests, disable_tqdm=False):
      """[text], greedily, each up to the first of its `until`."""
      found, groups = [''] * len(requests), {}
      for i, request in enumerate(requests):
        how = dict(request.args[1])
        if how.get('do_sample') and how.get('temperature', 1.0):
          raise ConfigError(f'--tasks=harness:{request.task_name}: asks for sampled text, and only greedy text is '
                            'compared here. Set do_sample: false in its generation_kwargs.')
        tokens = how.get('max_gen_toks', how.get('max_new_tokens', 256))
        groups.setdefault(tokens, []).append(i)
      for tokens, members in groups.items():
        prompts = [subject.scorer.asker.prompt(requests[i].args[0], '', tokens) for i in members]
        for i, text in zip(members, subject.generate(prompts, tokens)):
          until = requests[i].args[1].get('until') or []
          found[i] = ended(text.replace('<extra_id_0>', ''), [until] if isinstance(until, str) else until)
      return found
  return Ours()


def evaluate(subject, names, path=None, shots=-1, limit=0, say=lambda _: None):
  """{'harness:TASK': {metric: value}} of tasks of the harness, those in the folder `path` included."""
  try:
    import lm_eval
    from lm_eval.tasks import TaskManager
  except ImportError as error:
    raise ConfigError("--tasks=harness:.. needs the package lm_eval; run: pip install -e '.[eval]'") from error
  manager = TaskManager(include_path=path)
  known = set(manager.all_tasks)
  for name in names:
    if name not in known:
      import difflib
      near = difflib.get_close_matches(name, known, 1)
      raise ConfigError(f'--tasks=harness:{name}: the harness has no such task. '
                        + (f'Did you mean harness:{near[0]}? ' if near else '')
                        + '--harness_path adds a folder of task files.')
  results = lm_eval.simple_evaluate(
      language_model(subject), tasks=list(names), num_fewshot=None if shots < 0 else shots, limit=limit or None,
      task_manager=manager, bootstrap_iters=0, log_samples=False)
  found = {}
  for name, values in results['results'].items():
    # 'acc,none' is a metric and a filter; what is no number is a name or a missing standard error.
    numbers = {key.removesuffix(',none'): value for key, value in values.items() if isinstance(value, float)}
    found[f'harness:{name}'] = dict(numbers, items=results['n-samples'][name]['effective']) \
        if name in results['n-samples'] else numbers
    say(f'harness:{name}: {describe(found[f"harness:{name}"])}')
  return found
