"""Import and export as a whole: folders with any name, killed in between, with the special tokens that they name."""
import ast
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like import config as config_lib
from t5like.config import base
from t5like.decoding import trained_model
from t5like.errors import CheckpointError, ConfigError
from t5like.huggingface import model_folders, runs
from t5like.observe import report
from t5like.storage import workdir as workdir_lib
from t5like.training import loop
from t5like.vocabulary import loading as vocabulary_lib
from tests import folders, tiny
from tests.conftest import COMPILED_FAST, ROOT
from tests.parity import cases

LLAMA = dict(tiny.MODEL.__dict__, num_layers=1, num_encoder_layers=1, d_model=16, num_heads=2, num_kv_heads=1,
             d_ff=24, vocab_size=0, max_positions=48)


def llama(folder, made, **files):
  """A folder with a random Llama whose tokenizer is `made`."""
  size = made.get_vocab_size()
  shapes = dict(values=dict(LLAMA, vocab_size=size))
  params = random_params(shapes['values'])
  model_folders.write(folder, shapes['values'], params)
  (folder / 'generation_config.json').unlink()
  config = json.loads((folder / 'config.json').read_text())
  config.update(files.pop('config', {}))
  return folders.folder(folder, made, config=config, **files)


def random_params(values, seed=0):
  from t5like import sharding
  from t5like.model import transformer
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    params = jax.device_get(transformer.build(transformer.ModelConfig.of(values)).init(jax.random.key(seed)))
  return jax.tree.map(lambda x: np.asarray(x) * 3, params)


def with_bos():
  return folders.around(folders.byte_level(['<unk>', '<s>', '</s>']), ['<s>'])


NAMED = dict(bos_token='<s>', eos_token='</s>', unk_token='<unk>', tokenizer_class='PreTrainedTokenizerFast')


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """(folder, its library tokenizer, workdir of its import)."""
  path, made = tmp_path_factory.mktemp('imported'), with_bos()
  bos, eos = (made.token_to_id(name) for name in ('<s>', '</s>'))
  folder = llama(path / 'hf', made, tokenizer_config=NAMED, config=dict(bos_token_id=bos, eos_token_id=eos))
  runs.import_folder(folder, path / 'run')
  return folder, made, path / 'run'


# --- Special tokens there and back ----------------------------------------------------------------


def test_a_beginning_is_put_before_prompts_and_exported(imported, tmp_path):
  folder, made, workdir = imported
  run = trained_model.load(workdir)
  bos, eos, unk = (made.token_to_id(name) for name in ('<s>', '</s>', '<unk>'))
  assert run.style == 'document' and run.vocabulary.special() == dict(bos=bos, eos=eos, unk=unk)
  ids = made.encode('the fox').ids
  assert ids[0] == bos
  with_it, without = (run.generate([prompt], tokens=8, temperature=0) for prompt in ('the fox', ids[1:]))
  assert with_it == without  # both begin with <s>
  runs.export_run(workdir, tmp_path / 'out')
  config, generation, settings_, names = (json.loads((tmp_path / 'out' / f'{name}.json').read_text()) for name in (
      'config', 'generation_config', 'tokenizer_config', 'special_tokens_map'))
  assert (config['bos_token_id'], config['eos_token_id']) == (bos, eos)
  assert generation == dict(bos_token_id=bos, eos_token_id=eos, pad_token_id=None)
  assert names == dict(bos_token='<s>', eos_token='</s>', unk_token='<unk>') and names.items() <= settings_.items()
  assert (tmp_path / 'out' / 'tokenizer.json').read_bytes() == (folder / 'tokenizer.json').read_bytes()
  again = runs.import_folder(tmp_path / 'out', tmp_path / 'again')
  assert again.data.document_mask
  assert trained_model.load(tmp_path / 'again').vocabulary.special() == run.vocabulary.special()


def test_greedy_text_is_that_of_transformers(tmp_path):
  """As make_golden_text.py recorded it, after import and after export and import again; without <s> it is another."""
  golden = json.loads((ROOT / 'tests' / 'golden' / 'llama_text.json').read_text())
  folder = cases.write_folder(tmp_path / 'hf', {}, cases.weights(golden['shapes']))
  for name, text in golden['files'].items():
    (folder / name).write_text(text)
  runs.import_folder(folder, tmp_path / 'a')
  runs.export_run(tmp_path / 'a', tmp_path / 'out')
  runs.import_folder(tmp_path / 'out', tmp_path / 'b')
  for workdir in (tmp_path / 'a', tmp_path / 'b'):
    run = trained_model.load(workdir)
    assert run.generate(golden['prompts'], tokens=golden['tokens'], temperature=0) == golden['texts']
  assert golden['texts'] != golden['without'] and len(set(golden['texts'])) == 3


def test_fine_tuning_keeps_them(imported, tmp_path):
  folder, made, _ = imported
  c = tiny.config(tmp_path, steps=3, init_from=str(folder),
                  vocabulary=dict(name='huggingface', path=str(folder / 'tokenizer.json')))
  with c.unlocked():
    c.model.update(model_folders.model_of(folder), vocab_size=0)
    c.data.seq_len = 32
  loop.train(c, tmp_path / 'run', 'test', jax.devices()[:1])
  run = trained_model.load(tmp_path / 'run')
  assert run.vocabulary.bos_id == made.token_to_id('<s>') and run.style == 'document'
  assert isinstance(run.generate(['the '], tokens=4)[0], str)
  runs.export_run(tmp_path / 'run', tmp_path / 'out')
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['bos_token_id'] == made.token_to_id('<s>')


def test_a_tokenizer_that_puts_nothing_before_texts(tmp_path):
  """GPT-NeoX's and OLMo's: a stream of text, whose beginning only empty prompts take."""
  made = folders.byte_level(['<|endoftext|>', '<|pad|>'])
  end = made.token_to_id('<|endoftext|>')
  folder = llama(tmp_path / 'hf', made, tokenizer_config=dict(bos_token='<|endoftext|>', eos_token='<|endoftext|>'),
                 config=dict(eos_token_id=end))
  c = runs.import_folder(folder, tmp_path / 'run')
  run = trained_model.load(tmp_path / 'run')
  assert not c.data.document_mask and run.style == 'stream'
  assert run.generate([''], tokens=6, temperature=0) == run.generate([[end]], tokens=6, temperature=0)


def test_generation_ends_where_the_folder_says(imported, tmp_path):
  """Each of several ends, in sampling and in beam search."""
  run = trained_model.load(imported[2])
  prompt = run.vocabulary.encode('the quick').tolist()
  run.vocabulary.decode = lambda ids: ids  # half characters are no text
  said = run.generate([prompt], tokens=24, temperature=0)[0]
  assert len(said) == 24
  for ends in ((said[5], said[2]), (said[4],)):
    run.vocabulary.stop_ids = ends
    first = min(said.index(end) for end in ends)
    assert run.generate([prompt], tokens=24, temperature=0)[0] == said[:first]
    best = run.generate([prompt], tokens=24, temperature=0, beams=2)[0]
    assert len(best) < 24 and not set(ends) & set(best)


def test_a_folder_that_does_not_say_is_asked_about(tmp_path):
  made = folders.byte_level(['<|a|>', '<|b|>'])
  folder = llama(tmp_path / 'hf', made)
  with pytest.raises(ConfigError, match=r"special tokens are '<\|a\|>', '<\|b\|>'.*--config.vocabulary.special.eos="):
    runs.import_folder(folder, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  c = runs.import_folder(folder, tmp_path / 'run', ['vocabulary.special.eos=<|a|>'])
  assert c.vocabulary.special.to_dict() == dict(eos='<|a|>')
  assert trained_model.load(tmp_path / 'run').vocabulary.stop_ids == (made.token_to_id('<|a|>'),)
  c = runs.import_folder(folder, tmp_path / 'none', ["vocabulary.special={'eos': ''}"])
  assert not c.data.append_eos and trained_model.load(tmp_path / 'none').vocabulary.stop_ids == ()


def test_a_beginning_of_ours_goes_out_in_tokenizer_json(tmp_path):
  """A tokenizer that adds nothing, trained on documents that begin with <s>: exported, it puts <s> first."""
  made = folders.byte_level(['<s>', '</s>'])
  folder = folders.folder(tmp_path / 'hf', made, tokenizer_config=dict(bos_token='<s>', eos_token='</s>'))
  spec = base().vocabulary
  spec.update(name='huggingface', path=str(folder / 'tokenizer.json'))
  vocabulary = vocabulary_lib.imported(spec, spec.path)
  values = dict(LLAMA, vocab_size=vocabulary.size)
  import tokenizers
  for style, before, after in (('document', ['<s>'], []), ('stream', [], []), ('pair', ['<s>'], ['</s>'])):
    assert model_folders.write(tmp_path / style, values, random_params(values), vocabulary, style) == []
    there = tokenizers.Tokenizer.from_file(str(tmp_path / style / 'tokenizer.json'))
    assert there.encode('a').tokens == [*before, 'a', *after]


# --- Names of folders -----------------------------------------------------------------------------

NASTY = ['plain', '"""', "'''", 'a"b\'c', 'back\\slash', 'new\nline', '100%s{x}', '\u65e5\u672c \U0001f600',
         '#!$(id)`id`', '"""\nimport os\nos.mkdir("pwned")\n"""',
         "'); import os; os.mkdir('pwned') #", '\u2028\u0085', '\udcff']


@pytest.mark.parametrize('name', NASTY, ids=ascii)
def test_the_name_of_a_folder_is_never_source(name, imported, tmp_path, monkeypatch):
  """Nothing of it is executed, and config.py leads back to the folder."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(runs, '_save', lambda *_: None)  # the weights were imported by other tests
  folder = tmp_path / name
  os.symlink(imported[0], folder)
  c = runs.import_folder(folder, tmp_path / 'run')
  assert not (tmp_path / 'pwned').exists() and c.init_from == str(folder)
  text = (tmp_path / 'run' / 'config.py').read_text()
  assert text.isascii() and config_lib.load(tmp_path / 'run' / 'config.py').vocabulary.path == c.vocabulary.path
  assert c.vocabulary.path == f'{folder}/tokenizer.json'


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
                              st.text(st.characters(codec=None))),
                    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=8))
def test_values_are_written_as_literals(value):
  source = runs._literal(value)
  assert source.isascii() and '\n' not in source and ast.literal_eval(source) == value


@pytest.mark.parametrize('value', [float('nan'), float('inf'), object(), [float('inf')]],
                         ids=['nan', 'inf', 'object', 'list'])
def test_what_no_literal_stands_for_is_refused(value):
  with pytest.raises(ConfigError, match='cannot be written into a config'):
    runs._literal(value)
  with pytest.raises(ConfigError, match='cannot be a key'):
    runs._arguments({'a=1); print(': 1})


def test_the_report_takes_no_marks_from_names():
  page = report._page([dict(name='<b>@DATA@</b>', samples=['</script>@TITLE@'])])
  assert '&lt;b&gt;@DATA@&lt;/b&gt;' in page
  assert '</script>@TITLE@' not in page and '\\u003c/script>@TITLE@' in page


def test_launch_refuses_what_a_shell_would_run():
  env = dict(os.environ, NAME='pod', ZONE='z', DRY_RUN='1', REF='HEAD')
  for key, value in (('EXTRAS', "tpu]'; touch /x; '"), ('PYTHON', '3.12; id'), ('EXTRAS', '$(id)')):
    run = subprocess.run(['bash', str(ROOT / 'launch' / 'tpu_vm.sh'), 'setup'], env=dict(env, **{key: value}),
                         capture_output=True, text=True)
    assert run.returncode == 2 and f'{key}={value}: needs' in run.stderr


# --- Whole or not at all --------------------------------------------------------------------------


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
  for fault in (OSError(28, 'No space left on device'), ValueError('x')):
    with pytest.raises((CheckpointError, ValueError)):
      with workdir_lib.whole_folder(tmp_path / 'out') as new:
        (new / 'config.json').write_text('half')
        raise fault
    assert not (tmp_path / 'out').exists() and not (tmp_path / '.out.partial').exists()
  (tmp_path / '.out.partial').mkdir()  # of a process that was killed
  (tmp_path / '.out.partial' / 'old').write_text('')
  (tmp_path / 'out').mkdir()  # empty, as mkdir left it
  with workdir_lib.whole_folder(tmp_path / 'out') as new:
    (new / 'config.json').write_text('whole')
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['config.json']
  with pytest.raises(ConfigError, match='out holds files already'):
    with workdir_lib.whole_folder(tmp_path / 'out'):
      pass
  (tmp_path / 'file').write_text('')
  with pytest.raises(ConfigError, match='file holds files already'):
    with workdir_lib.whole_folder(tmp_path / 'file'):
      pass


KILLED = '''
import os, signal, sys
from t5like.huggingface import model_weights, runs
how, source, out = sys.argv[1:]
def stop(*a, **k):
  print('here', flush=True)
  os.kill(os.getpid(), signal.SIGSTOP)
if how == 'export':
  model_weights.library().numpy.save_file = stop
  runs.export_run(source, out)
else:
  runs.workdir_lib.write_config = stop
  runs.import_folder(source, out)
'''


@pytest.mark.parametrize('how', ['export', 'import'])
def test_killed_in_the_middle_the_same_command_ends_the_work(how, imported, tmp_path):
  folder, _, workdir = imported
  source, out = (workdir, tmp_path / 'out') if how == 'export' else (folder, tmp_path / 'out')
  process = subprocess.Popen([sys.executable, '-c', KILLED, how, str(source), str(out)], cwd=ROOT,
                             stdout=subprocess.PIPE, env=dict(os.environ, XLA_FLAGS=COMPILED_FAST))
  assert process.stdout.readline() == b'here\n'
  assert not out.exists() and list(tmp_path.iterdir())
  process.send_signal(signal.SIGKILL)
  process.wait(10)
  time.sleep(0.1)
  if how == 'export':
    runs.export_run(source, out)
    assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= {path.name for path in out.iterdir()}
  else:
    runs.import_folder(source, out)
    assert trained_model.load(out).step == 0
  assert [path.name for path in tmp_path.iterdir()] == ['out']


# --- What transformers would refuse ---------------------------------------------------------------


@pytest.mark.parametrize('family, changes, problem', [
    ('llama', dict(num_heads=5, num_kv_heads=5, d_model=48, head_dim=14),
     'model.d_model=48, .* model.num_heads=5, such as 50'),
    ('gpt2', dict(norm='layernorm', use_bias=True, position='learned', activation='gelu', num_heads=3, num_kv_heads=3,
                  d_model=50, head_dim=16), 'a multiple of model.num_heads=3, such as 51'),
    # RoBERTa's head has the exact GELU whatever the rest has.
    ('bert', dict(name='encoder', block='post_norm', norm='layernorm', use_bias=True, embed_norm=True,
                     position='learned_from_2', num_types=1, head='mlm', tie_embeddings=True, activation='relu',
                     num_kv_heads=4, head_dim=8), "model.position='learned_from_2', which would have to be 'learned'")])
def test_models_that_transformers_would_refuse_or_read_differently(family, changes, problem, tmp_path):
  model = dict(tiny.MODEL.__dict__, **changes)
  with pytest.raises(ConfigError, match=problem) as e:
    model_folders.write(tmp_path / 'out', model, {})
  assert family in str(e.value) and not (tmp_path / 'out').exists()
