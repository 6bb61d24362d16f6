"""Tasks for the harness of the items that our own evaluators ask."""
import types

from t5like.evals import evaluate
from t5like.evals.tasks import make
from tests.evals import test_score

ITEMS = 8
MULTIPLE = '''
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{train: {train}, test: {test}}}
training_split: train
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
target_delimiter: "{delimiter}"
fewshot_delimiter: "\\n\\n"
output_type: {kind}
{rest}
'''
TASKS = dict(
    agreement=('multiple_choice', ' ', '''
doc_to_text: "{{subject}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
'''),
    next_line=('multiple_choice', '\\n', '''
doc_to_text: "{{code}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
'''),
    last_word=('loglikelihood', '', '''
doc_to_text: "{{text}}"
doc_to_target: "{{' ' + word}}"
metric_list: [{metric: acc}, {metric: perplexity}]
'''),
    english=('loglikelihood_rolling', '', '''
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]
'''),
    copying=('generate_until', ' ', '''
doc_to_text: "say: {{words}}\\nagain:"
doc_to_target: "{{words}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}, {metric: bleu}]
'''))


def written(folder):
  """Task files for the harness of the same items, the reserved ones being those that examples are taken from."""
  for name, (kind, delimiter, rest) in TASKS.items():
    lines = [f'{line}\n' for line in make.text_of(name).split('\n')[:-1]]
    held = 0 if kind == 'loglikelihood_rolling' else make.RESERVED
    paths = dict(train=folder / f'{name}.train.jsonl', test=folder / f'{name}.test.jsonl')
    paths['train'].write_text(''.join(lines[:make.RESERVED]))
    paths['test'].write_text(''.join(lines[held:held + ITEMS]))
    (folder / f'{name}.yaml').write_text(MULTIPLE.format(name=f'ours_{name}', kind=kind, delimiter=delimiter, rest=rest,
                                                         **paths))
  return folder


def subject(kind, folder):
  c, model, params, vocabulary, mesh = test_score.setting(kind, folder)
  return evaluate.Subject(model, params, vocabulary, c, mesh)


def tokens_per_item(s, shots):
  items = make.items('last_word')[make.RESERVED:][:ITEMS]
  return sum(len(s.scorer.asker.ids(item['text'], f' {item["word"]}')[1]) for item in items) / ITEMS


def request(*args, doc_id=0):
  return types.SimpleNamespace(args=args, task_name='mine', doc_id=doc_id)
