"""What a training run has its model do, besides validating it: tasks, samples, histograms."""
import jax

from t5like import decode, histograms as histograms_lib
from t5like.evals import evaluate
from t5like.optimizers import path_name


def solve(run):
  """The results of evaluate.tasks at the newest step, {task: {metric: value}}, on screen and in the run's files.

  `run`: a loop.Run. Results of the same step are not computed again. A task that fails is reported and left out.
  """
  c = run.config.evaluate
  if not c.tasks or run.solved and run.solved['step'] == run.step:
    return run.solved and run.solved['tasks']
  subject = evaluate.Subject(run.model, run.state['params'], run.store.vocabulary, run.config, run.mesh,
                             tick=lambda: run.alive('start'))  # new shapes are compiled
  run.now('eval', 'start')
  jobs = evaluate.jobs(subject, evaluate.read(evaluate.chosen(c.tasks), c.shots, c.limit))
  found, _ = evaluate.attempt(jobs, run.screen.say)  # one that fails is said, and costs nothing else
  if run.files:
    run.files.write(run.step, {f'tasks/{task}/{metric}': value for task, values in found.items()
                               for metric, value in values.items()})
    run.files.flush()
  run.solved = dict(step=run.step, tasks=found)
  run.now('step')
  return found


def sample(run):
  """Shows and keeps what the model makes of config.sample.prompts; on one process only."""
  s = run.config.sample
  if not s.prompts or jax.process_count() > 1 or run.mesh.shape['context'] > 1:
    return
  run.now('eval', 'start')  # decoding compiles
  style = decode.style_of(run.config)
  texts = decode.generate(
      run.model, run.state['params'], run.store.vocabulary, s.prompts, style=style, context=run.config.data.seq_len,
      targets=run.shapes.targets, tokens=s.tokens, temperature=s.temperature, top_k=s.top_k, top_p=s.top_p,
      seed=run.config.seed)
  for prompt, text in zip(s.prompts, texts):
    run.screen.sample(prompt, text, style)
    run.files.sample(run.step, prompt, text)
  run.now('step')


def histograms(run, batch):
  """Of all parameters, and of their gradients on the newest batch."""
  run.now('eval', 'start')  # the first time compiles
  params = run.state['params']
  counted = jax.device_get(run.count(params, batch, jax.random.key(run.config.seed)))
  if run.files:
    sizes = {path_name(path): x.size for path, x in jax.tree_util.tree_leaves_with_path(params)}
    run.files.histograms(run.step, histograms_lib.named(counted, sizes))
  run.rate.pause()
  run.now('step')
