"""Folders of Hugging Face models that are damaged or hostile, imported by main.py, each in a process of its own."""
import json
import os
import pathlib
import pickle
import random
import shutil
import struct
import tempfile
import time
import traceback

import numpy as np

from tests.faults import forks, hostile_json
from tests.tiny import WORDS

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SECONDS, MEGABYTES = 2.0, 1000  # of a processor, and of memory, that a refusal may take
CODES = (2, 3, 4)  # of wrong configs, data and checkpoints
EVERY = 10  # folders: one of them is imported
LIMIT = 120  # seconds after which a process is taken for one that hangs
JSON_FILES = ('config.json', 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json',
              'generation_config.json', 'model.safetensors.index.json')


def originals(folder):
  """One folder for each family as transformers saves it, every second one with its weights in two files: [path]."""
  from tests.parity import cases
  golden = np.load(ROOT / 'tests' / 'golden' / 'huggingface.npz')
  about, made = json.loads(str(golden['about'])), []
  for i, name in enumerate(cases.CASES):
    facts = about[name]
    path = cases.write_folder(pathlib.Path(folder) / name, facts['config'], cases.weights(facts['shapes']))
    if i % 2:
      _split(path)
    _write_tokenizer(path, facts['config'])
    made.append(path)
  return made


def _split(path):
  from safetensors.numpy import load_file, save_file
  tensors, where = load_file(path / 'model.safetensors'), {}
  for part in range(2):
    file = f'model-{part + 1:05}-of-00002.safetensors'
    some = {name: tensors[name] for name in sorted(tensors)[part::2]}
    save_file(some, path / file, metadata=dict(format='pt'))
    where.update(dict.fromkeys(some, file))
  (path / 'model.safetensors').unlink()
  (path / 'model.safetensors.index.json').write_text(json.dumps(dict(metadata=dict(total_size=1), weight_map=where)))


def _write_tokenizer(path, config):
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers
  encoder, t5 = config['model_type'] in ('bert', 'roberta'), config['model_type'] == 't5'
  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] if encoder else ['<pad>', '</s>', '<unk>', '<s>']
  special += [f'<extra_id_{k}>' for k in range(9)] if t5 else []
  if t5:
    model, trainer = models.Unigram(), trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token='<unk>')
  elif encoder:
    model = models.WordPiece(unk_token='[UNK]')
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special)
  else:
    model, trainer = models.BPE(unk_token='<unk>'), trainers.BpeTrainer(vocab_size=90, special_tokens=special)
  made = tokenizers.Tokenizer(model)
  made.pre_tokenizer = pre_tokenizers.Whitespace() if encoder else pre_tokenizers.Metaspace()
  made.decoder = decoders.WordPiece() if encoder else decoders.Metaspace()
  made.train_from_iterator([' '.join(WORDS)] * 20, trainer)
  made.save(str(path / 'tokenizer.json'))
  names = dict(zip(('pad_token', 'unk_token', 'cls_token', 'sep_token', 'mask_token'), special)) if encoder else dict(
      pad_token='<pad>', eos_token='</s>', unk_token='<unk>', bos_token='<s>')
  ids = {f'{role}_id': made.token_to_id(text) for role, text in names.items()}
  settings = dict(names, model_max_length=10 ** 30, extra_special_tokens=[])
  (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  (path / 'special_tokens_map.json').write_text(json.dumps(names))
  (path / 'generation_config.json').write_text(json.dumps(ids))


def damage(rng, folder):
  """Does one thing to a folder; returns what."""
  roll = rng.random()
  if roll < 0.25:
    return _damage_weights(rng, folder)
  name = rng.choices(JSON_FILES, (6, 4, 1, 1, 1, 2))[0]
  path = folder / name
  if not path.exists():
    path = folder / 'config.json'
  if roll > 0.95:
    return f'{path.name}: {_instead(rng, path)}'
  what, content = hostile_json.mutated(rng, path.read_bytes())
  path.write_bytes(content)
  return f'{path.name}: {what}'


def _instead(rng, path):
  """Puts something that is no file of its own in the place of a file."""
  content = path.read_bytes()
  path.unlink()
  how = rng.choice(['gone', 'folder', 'pipe', 'link to a device', 'link outside', 'link to itself', 'link to nothing'])
  targets = {'link to a device': '/dev/zero', 'link to itself': path.name, 'link to nothing': 'nothing'}
  if how == 'folder':
    path.mkdir()
  elif how == 'pipe':
    os.mkfifo(path)
  elif how == 'link outside':
    outside = path.parent.parent / 'outside'
    outside.write_bytes(content)
    path.symlink_to(outside)
  elif how != 'gone':
    path.symlink_to(targets[how])
  return how


def _damage_weights(rng, folder):
  path = rng.choice(sorted(folder.glob('*.safetensors')))
  how = rng.choice(['header', 'header', 'bytes', 'values', 'values', 'values', 'kind', 'shape', 'drop', 'add', 'name',
                    'content', 'instead'])
  if how == 'instead':
    return f'{path.name}: {_instead(rng, path)}'
  content = path.read_bytes()
  length = int.from_bytes(content[:8], 'little')
  if how == 'header':
    what, header = hostile_json.mutated(rng, content[8:8 + length])
    path.write_bytes(len(header).to_bytes(8, 'little') + header + content[8 + length:])
    return f'{path.name}, header: {what}'
  if how == 'content':
    i, contents = rng.randrange(7), [
        b'', bytes(64), pickle.dumps(dict(a=np.zeros(9))), content[:rng.randrange(len(content))], content + b'x',
        struct.pack('<Q', rng.choice([2 ** 63, 2 ** 40, 10 ** 8, 0, 7])) + content[8:], b'GGUF' + bytes(100)]
    path.write_bytes(contents[i])
    return f'{path.name}: content {i}'
  if how == 'bytes':
    damaged, at = bytearray(content), rng.randrange(8 + length)
    damaged[at] ^= 1 << rng.randrange(8)
    path.write_bytes(damaged)
    return f'{path.name}: bit of byte {at}'
  return f'{path.name}: {_damage_tensors(rng, path, how)}'


def _damage_tensors(rng, path, how):
  from safetensors.numpy import load_file, save_file
  tensors = load_file(path)
  name = rng.choice(sorted(tensors))
  x = tensors[name].copy()
  if how == 'values':
    x.flat[rng.randrange(x.size) if rng.random() < 0.5 else slice(None)] = rng.choice([np.nan, np.inf, -np.inf])
  elif how == 'kind':
    x = x.astype(rng.choice(['int32', 'int8', 'uint8', 'int64', 'bool']))
  elif how == 'shape':
    x = rng.choice([x[None], x.reshape(-1)[:-1], x.T if x.ndim > 1 else x[:-1], np.zeros((0,), np.float32)])
  tensors[name] = np.ascontiguousarray(x)
  if how == 'drop':
    del tensors[name]
  elif how == 'add':
    tensors[f'{name}.more'] = x
  elif how == 'name':
    tensors[rng.choice([name.upper(), '', 'x' * 5000, name + '\n', '../' + name])] = tensors.pop(name)
  save_file(tensors, path, metadata=dict(format='pt'))
  return f'{how} of {name}'


def hostile_folders(folder, count, seed=0):
  """{folders, imported, refused, right, wrong, crashed, slow, large, notes, most_seconds, most_megabytes}.

  Every tenth folder is imported by main.py in a process of its own, the others are read as `import` reads them.
  refused: by an exit code of 2, 3 or 4 and one paragraph; right: with the weights and sizes that the files hold; slow,
  large: refusals that took more than SECONDS of a processor or MEGABYTES; crashed: anything else.
  """
  folder, rng = pathlib.Path(folder), random.Random(seed)
  folder.mkdir(parents=True, exist_ok=True)
  sources = originals(folder / 'originals')
  found = dict(folders=0, imported=0, refused=0, right=0, wrong=0, crashed=0, slow=0, large=0, notes=[],
               most_seconds=0.0, most_megabytes=0)
  for source in sources:
    code, said, *_ = _import(source, folder)
    if code:
      raise AssertionError(f'{source} as it is: {code}\n{said[-2000:]}')
  while found['folders'] < count:
    some = min(EVERY, count - found['folders'])
    cases = [(rng.choice(sources), rng.getrandbits(60)) for _ in range(some)]
    source, number = cases[0]
    what = _damaged_copy(folder, source, number)
    code, said, seconds, megabytes = _import(folder / 'case' / source.name, folder)
    found['imported'] += 1
    _count(found, what, judge(code, said), seconds, megabytes, f'{code} {said[-300:]}')
    outcomes = forks.one_by_one(folder, cases[1:], lambda case: _damage_and_read(folder, case),
                                lambda case, why: [case[0].name, 'crashed', 0.0, 0, why], LIMIT)
    for outcome in outcomes:
      _count(found, *outcome)
  return found


def _count(found, what, verdict, seconds, megabytes, said):
  found['folders'] += 1
  found[verdict] += 1
  slow, large = seconds > SECONDS, megabytes > MEGABYTES
  if verdict == 'refused':
    found['slow'] += slow
    found['large'] += large
    found['most_seconds'] = max(found['most_seconds'], seconds)
    found['most_megabytes'] = max(found['most_megabytes'], megabytes)
  if verdict in ('wrong', 'crashed') or verdict == 'refused' and (slow or large):
    found['notes'].append(f'{what}: {verdict}, {seconds:.1f} s, {megabytes} MB: {" ".join(said.split())}')


def _damaged_copy(folder, source, number):
  """Makes folder/case/NAME, a copy of a folder with one thing wrong; returns what."""
  copy = folder / 'case' / source.name
  shutil.rmtree(copy.parent, ignore_errors=True)
  shutil.copytree(source, copy)
  return f'{source.name}/{damage(random.Random(number), copy)}'


def _damage_and_read(folder, case):
  """[what, verdict, seconds, megabytes, what was said] of a damaged copy."""
  source, number = case
  what = _damaged_copy(folder, source, number)
  return [what, *_read(folder / 'case' / source.name)]


def _read(copy):
  """(verdict, seconds, megabytes, what was said) of reading a folder as `import` does, but for its checkpoint."""
  from t5like.errors import Failure
  from t5like.huggingface import folder_tokenizers, model_folders
  before, began = memory(reset=True), time.process_time()
  verdict, said = 'right', ''
  try:
    folder_tokenizers.find_tokenizer(copy, {})
    values, params = model_folders.read(copy)
    said = _difference(copy, values, params) or ''
    verdict = 'wrong' if said else 'right'
  except Failure as error:
    said = str(error)
    fine = error.exit_code in CODES and 20 < len(said) < 4000 and '\n' not in said
    verdict = 'refused' if fine else 'crashed'
  except BaseException as error:  # a panic of Rust is no Exception
    verdict, said = 'crashed', ''.join(traceback.format_exception(error))[-500:]
  return verdict, time.process_time() - began, max(0, memory() - before), said[:500]


def memory(reset=False):
  """The most megabytes that this process held since it last asked to forget that."""
  if reset:
    pathlib.Path('/proc/self/clear_refs').write_text('5')
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.partition('VmHWM:')[2].split()[0]) // 1024


def judge(code, said):
  if code == 0:
    return 'right'
  if code == 'wrong':
    return 'wrong'
  paragraph = said.partition('ERROR: ')[2].strip()
  refused = code in CODES and 20 < len(paragraph) < 4000 and '\n' not in paragraph and 'Traceback' not in said
  return 'refused' if refused else 'crashed'


def _import(folder, workplace):
  """(exit code, what was said, seconds of a processor, megabytes) of an import; code 'wrong' for another model."""
  workdir = pathlib.Path(tempfile.mkdtemp(dir=workplace)) / 'run'
  log = workdir.parent / 'log'
  pid = os.fork()
  if not pid:
    forks.be_a_process(lambda: _import_and_look(folder, workdir), log)
  end, done = time.monotonic() + LIMIT, 0
  while not done and time.monotonic() < end:
    done, status, used = os.wait4(pid, os.WNOHANG)
    time.sleep(0.005)
  if not done:
    os.kill(pid, 9)
    _, status, used = os.wait4(pid, 0)
  said = log.read_text(errors='replace') if log.exists() else ''
  code = os.waitstatus_to_exitcode(status) if done else 'a hang'
  shutil.rmtree(workdir.parent)
  return 'wrong' if code == 77 else code, said, used.ru_utime + used.ru_stime, used.ru_maxrss // 1024


def _import_and_look(folder, workdir):
  import jax
  jax.config.update('jax_compilation_cache_dir', str(workdir.parent.parent / 'cache'))  # most cases are compiled alike
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  forks.run_main('import', f'--folder={folder}', f'--workdir={workdir}')
  from t5like.decoding import trained_model
  run = trained_model.load(workdir)
  problem = _difference(folder, run.config.model, run.params)
  if problem:
    print(problem, flush=True)
    raise SystemExit(77)


def _difference(folder, values, params):
  """What a model that was read has and the folder has not, read by other programs; None if nothing."""
  import jax
  from safetensors.numpy import load_file

  from t5like.huggingface import model_config, weight_table
  from t5like.huggingface.families import FAMILIES
  theirs = json.loads((folder / 'config.json').read_text(encoding='utf-8-sig'))
  family = FAMILIES[theirs['model_type']]
  for key, ours in family.keys.items():
    if isinstance(theirs.get(key), int) and values[ours] != theirs[key] and ours != 'tie_embeddings':
      return f'{key} is {theirs[key]} and became {values[ours]}'
  tensors = {}
  for file in sorted(folder.glob('*.safetensors')):
    tensors.update(load_file(file))
  model = model_config.to_model(theirs)
  wanted = weight_table.names(weight_table.lines(theirs['model_type'], model), model)
  known = [x for name, x in tensors.items() if name in wanted or f'{family.prefix}{name}' in wanted
           or name == 'lm_head.weight' and 'embed_out.weight' in wanted]
  expected, found = _squares(known), _squares(jax.tree.leaves(params))
  return None if abs(expected - found) < 1e-5 * expected else f'squares of weights are {expected} and became {found}'


def _squares(arrays):
  return sum(float(np.square(np.asarray(x, np.float64)).sum()) for x in arrays)
