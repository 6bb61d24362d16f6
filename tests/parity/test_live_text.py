"""Text in, text out: trained runs of ours and what `main.py export` makes of them, as transformers runs it.

Nothing is handed over but the prompt, a text: their tokenizer, their model, their generate() with the settings in the
folder, against `load(...).generate` at temperature 0.

    pip install -e '.[test,parity]' && pytest -m parity
"""
import jax
import numpy as np
import pytest

from t5like.decoding import trained_model
from t5like.huggingface import runs
from t5like.training import loop
from tests import tiny
from tests.conftest import Package

pytestmark = pytest.mark.parity
transformers = Package('transformers')
torch = Package('torch')

NEW = 16
PLAIN = dict(norm='layernorm', use_bias=True, position='learned', max_positions=64, num_kv_heads=0, tie_embeddings=True)
T5 = dict(name='encoder_decoder', position='relative', scale_attention=False, num_kv_heads=0, activation='geglu')
PAIRS = dict(objective=dict(name='seq2seq'), data=dict(inputs='say: {text}', targets='{text}', packing='best_fit',
                                                       seq_len=64, target_len=64))
PIECES = dict(name='sentencepiece', size=288, sentinels=8, train_characters=20_000)
BPE = dict(PIECES, size=320, algorithm='bpe', normalization='identity')

# name: (sections of the config, prompts)
RUNS = dict(
    llama=(dict(vocabulary=PIECES), ('the ', 'is it for', 'a')),
    # Begun from another of these, which is trained first.
    llama_lora=(dict(vocabulary=PIECES, model=dict(lora_rank=4), init_from='llama'), ('the ', 'is it for', 'a')),
    llama_pairs=(dict(PAIRS, vocabulary=BPE, model=dict(prefix_mask=False)), ('say: the a of', 'say: was not have')),
    gpt2=(dict(vocabulary=BPE, model=dict(PLAIN, activation='gelu_tanh', init='gpt2')), ('the ', 'is it for', 'a')),
    bert=(dict(vocabulary=PIECES, objective=dict(name='masked_lm', cls_sep=True), model=dict(
        PLAIN, name='encoder', block='post_norm', embed_norm=True, head='mlm', num_types=2, activation='gelu',
        init='bert')), ('the a<mask> of', 'is it<mask> as that', 'by<mask> with<mask> this')),
    t5=(dict(vocabulary=PIECES, model=dict(T5, activation='relu', tie_embeddings=True, head='scaled'),
             objective=dict(name='span_corruption', noise_density=0.5), steps=240),
        ('the a<extra_id_0> of to', 'is<extra_id_0> as that<extra_id_1>')),
    t5_v1_1=(dict(PAIRS, vocabulary=BPE, model=T5), ('say: the a of', 'say: was not have')),
)


@pytest.fixture(scope='module', params=RUNS)
def pair(request, tmp_path_factory):
  """(name, our trained model, folder of its export, prompts)."""
  folder, (sections, prompts) = tmp_path_factory.mktemp(request.param), RUNS[request.param]
  sections = {'steps': 60, **sections, 'model': dict(vocab_size=384, **sections.get('model', {}))}
  if 'init_from' in sections:
    first = {k: v for k, v in sections.items() if k != 'init_from'}
    first['model'] = dict(first['model'], lora_rank=0)
    loop.train(tiny.config(folder, **first), folder / 'first', 'test', jax.devices()[:1])
    sections['init_from'] = str(folder / 'first')
  loop.train(tiny.config(folder, **sections), folder / 'run', 'test', jax.devices()[:1])
  runs.export_run(folder / 'run', folder / 'out')
  return request.param, trained_model.load(folder / 'run'), folder / 'out', prompts


def answered(folder, prompt, kind):
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = getattr(transformers, kind).from_pretrained(folder).eval()
  asked = tokenizer(prompt, return_tensors='pt')
  with torch.no_grad():
    out = model.generate(**asked, max_new_tokens=NEW, do_sample=False)[0]
  # What was said: without the prompt, and from the beginning that T5 gives itself.
  known = 1 if kind.endswith('Seq2SeqLM') else asked.input_ids.shape[1]
  return tokenizer.decode(out[known:], skip_special_tokens=False)


def until_end(text, prompt):
  """As far as an answer goes: to the end of the text, or to a sentinel beyond those that were asked for."""
  later = [f'<extra_id_{k}>' for k in range(prompt.count('<extra_id_'), 8)]
  for end in ('</s>', '<pad>', *(later if '<extra_id_' in prompt else ())):
    text = text.partition(end)[0]
  return text


def filled(folder, prompt):
  """All masks filled in by their model, the surest first, as text; tokens that are no text are passed over."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
  ids = tokenizer(prompt.replace('<mask>', tokenizer.mask_token), return_tensors='pt').input_ids
  while (masks := (ids[0] == tokenizer.mask_token_id).nonzero()[:, 0]).numel():
    with torch.no_grad():
      logits = model(input_ids=ids).logits[0, masks]
    logits[:, [*tokenizer.all_special_ids, *range(len(tokenizer), logits.shape[1])]] = -torch.inf
    p = torch.softmax(logits, -1)
    surest = int(p.max(-1).values.argmax())
    ids[0, masks[surest]] = int(p[surest].argmax())
  return tokenizer.decode(ids[0, 1:-1])


def test_the_same_text(pair):
  name, ours, folder, prompts = pair
  said = ours.generate(list(prompts), tokens=NEW, temperature=0)
  if name == 'bert':
    theirs = [filled(folder, prompt) for prompt in prompts]
  else:
    kind = 'AutoModelForSeq2SeqLM' if name.startswith('t5') else 'AutoModelForCausalLM'
    theirs = [answered(folder, prompt, kind) for prompt in prompts]
    theirs = [until_end(*both) for both in zip(theirs, prompts)]
  assert said == theirs
  assert len(set(said)) > 1 and all(np.char.str_len(said) > 3)


def test_the_folder_says_itself_what_is_never_said(pair):
  name, ours, folder, _ = pair
  if name != 'bert':
    never = transformers.GenerationConfig.from_pretrained(folder).suppress_tokens
    v = ours.vocabulary
    assert never == sorted({v.pad_id, v.unk_id, *range(v.size, ours.config.model.vocab_size)})
