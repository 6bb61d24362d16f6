"""Special tokens come from the folder of a tokenizer, and from nothing else."""
import io
import json
import types

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like import config as config_lib
from t5like.config import base
from t5like.errors import ConfigError, DataError
from t5like.huggingface import folder_tokenizers
from t5like.objectives import lengths
from t5like.vocabulary import loading as vocabulary_lib, special_tokens
from t5like.vocabulary.requirements import check_vocabulary
from t5like.vocabulary.tokenizer_json import HuggingFace
from tests import folders, tiny


def spec(path, kind='huggingface', sentinels=0, **special):
  s = base().vocabulary
  s.update(name=kind, path=str(path), sentinels=sentinels, special=special)
  return s


def read(folder, file='tokenizer.json', kind='huggingface', **special):
  s = spec(folder / file, kind, **special)
  return vocabulary_lib.imported(s, s.path)


def ascii_start(text):
  return ascii(text)[:20]


def ids(vocabulary):
  return {role: i for role, i in vocabulary.special().items() if role in special_tokens.ROLES}


# --- What the folder says -------------------------------------------------------------------------


def test_an_ordinary_piece_with_the_name_of_a_special_token_is_text(tmp_path):
  """Qwen's: </s> is a piece like any other, and documents end with what tokenizer_config.json names."""
  made = folders.byte_level(['<|endoftext|>', '<|im_start|>', '<|im_end|>'], pieces=['</s>', '<s>', '<pad>'])
  end = made.token_to_id('<|endoftext|>')
  folder = folders.folder(tmp_path, made, tokenizer_config=dict(
      tokenizer_class='Qwen2Tokenizer', bos_token=None, eos_token='<|im_end|>', pad_token='<|endoftext|>'),
      config=dict(model_type='qwen2', bos_token_id=end, eos_token_id=end),
      generation_config=dict(eos_token_id=[end + 2, end], bos_token_id=end))
  v = read(folder)
  assert ids(v) == dict(bos=end, eos=end + 2, pad=end)
  assert v.stop_ids == (end + 2, end) and v.before == () and v.unk_id is None
  ordinary = made.token_to_id('</s>')
  assert ordinary not in v.special_ids and end + 1 in v.special_ids
  assert v.decode([ordinary]) == '</s>' and v.encode('<|im_end|>').tolist() != [end + 2]


@pytest.mark.parametrize('names', [
    dict(bos='<\uff5cbegin\u2581of\u2581sentence\uff5c>', eos='<\uff5cend\u2581of\u2581sentence\uff5c>'),  # DeepSeek
    dict(bos='<EOT>', eos='<EOT>'), dict(bos='\n\nHuman:', eos='<META_START>')])
def test_names_that_nobody_could_guess(names, tmp_path):
  made = folders.byte_level(list(dict.fromkeys(names.values())))
  settings = {f'{role}_token': dict(__type='AddedToken', content=name) for role, name in names.items()}
  v = read(folders.folder(tmp_path, made, tokenizer_config=dict(settings, tokenizer_class='LlamaTokenizerFast')))
  assert ids(v) == {role: made.token_to_id(name) for role, name in names.items()}


def test_precedence(tmp_path):
  """The config, tokenizer_config.json (and the older map over it), defaults of the class, ids of the model."""
  made = folders.byte_level(['<a>', '<b>', '<c>', '<d>', '<|endoftext|>'])
  a, b, c, d, end = (made.token_to_id(name) for name in ('<a>', '<b>', '<c>', '<d>', '<|endoftext|>'))
  case = iter(range(100))
  def eos(chosen=None, **files):
    return read(folders.folder(tmp_path / str(next(case)), made, **files), **chosen or {}).eos_id
  model = dict(config=dict(eos_token_id=c), generation_config=dict(eos_token_id=[d]))
  named = dict(model, tokenizer_config=dict(eos_token='<a>'))
  assert eos() is None
  assert eos(config=dict(eos_token_id=c)) == c
  assert eos(**model) == d
  assert eos(**named) == a
  assert eos(**named, special_tokens_map=dict(eos_token='<b>')) == b
  with_decoder = dict(eos_token='<a>', added_tokens_decoder={str(a): dict(content='<a>', special=True)})
  assert eos(**model, tokenizer_config=with_decoder, special_tokens_map=dict(eos_token='<b>')) == a
  assert eos(dict(eos='<b>'), **named) == b and eos(dict(eos=c), **named) == c and eos(dict(eos=''), **named) is None
  assert eos(config=dict(model_type='gpt2', eos_token_id=c)) == end
  assert eos(config=dict(model_type='gpt2', eos_token_id=c), tokenizer_config=dict(eos_token=None)) == c
  assert eos(config=dict(eos_token_id=[c, d])) is None  # which of them ends documents is not said
  assert eos(config=dict(eos_token_id=10_000)) is None


def test_defaults_of_classes_need_a_token_that_is_marked(tmp_path):
  made = folders.byte_level([], pieces=['</s>', '<s>', '<unk>'])
  v = read(folders.folder(tmp_path, made, config=dict(model_type='t5'), tokenizer_config={}))
  assert ids(v) == {} and v.start_id is None
  made = folders.word_piece()
  v = read(folders.folder(tmp_path / 'bert', made, config=dict(model_type='bert'), tokenizer_config={}))
  assert ids(v) == dict(pad=0, unk=1, cls=2, sep=3, eos=3, mask=4) and (v.before, v.after) == ((2,), (3,))


def test_what_the_tokenizer_puts_around_texts(tmp_path):
  made = folders.around(folders.byte_level(['<x>', '<y>']), ['<x>'], ['<y>'])
  x, y = made.token_to_id('<x>'), made.token_to_id('<y>')
  v = read(folders.folder(tmp_path, made, tokenizer_config=dict(eos_token='<y>')))
  assert (v.before, v.after, v.bos_id, v.eos_id) == ((x,), (y,), x, y)  # what begins every text is its beginning
  # GPT-NeoX's class builds its own, which adds nothing.
  v = read(folders.folder(tmp_path / 'neox', made, tokenizer_config=dict(
      tokenizer_class='GPTNeoXTokenizerFast', bos_token='<x>', eos_token='<y>')))
  assert (v.before, v.after, v.bos_id) == ((), (), x)


@pytest.mark.parametrize('files, chosen, problem', [
    (dict(tokenizer_config=dict(eos_token='<none>')), {},
     r"eos_token='<none>', which .* --config.vocabulary.special.eos="),
    (dict(tokenizer_config=dict(eos_token=3)), {}, 'tokenizer_config.json: eos_token=3 must be'),
    (dict(generation_config=dict(eos_token_id='x')), {}, 'generation_config.json: eos_token_id="x" must be'),
    (dict(special_tokens_map=[]), {}, 'special_tokens_map.json: the whole=.* must be an object'),
    ({}, dict(eos='<none>'), "vocabulary.special.eos='<none>': .* has no such token"),
    ({}, dict(bos=10 ** 9), 'vocabulary.special.bos=1000000000: .* has no such token')])
def test_folders_that_are_wrong(files, chosen, problem, tmp_path):
  folder = folders.folder(tmp_path, folders.byte_level(['<a>']), **files)
  with pytest.raises(ConfigError, match=problem) as e:
    read(folder, **chosen)
  assert '\n' not in str(e.value)


HOSTILE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 10 ** 10), st.floats(allow_nan=False), st.text(max_size=4),
              st.sampled_from(['<s>', '</s>', '<pad>', 'ByT5Tokenizer', 'LlamaTokenizerFast', 't5', 'bert'])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(
        st.text(max_size=3), st.just('content')), inner, max_size=3)), max_leaves=5)
KEYS = ['bos_token', 'eos_token', 'mask_token', 'tokenizer_class', 'additional_special_tokens', 'extra_ids',
        'added_tokens_decoder', 'add_bos_token', 'bos_token_id', 'eos_token_id', 'decoder_start_token_id', 'model_type',
        'suppress_tokens', 'extra_special_tokens']


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
  """Three folders: with a tokenizer.json, with a SentencePiece model, without either."""
  path = tmp_path_factory.mktemp('hostile')
  folders.folder(path / 'json', folders.byte_level(['<s>', '</s>', '<pad>']))
  (path / 'pieces').mkdir()
  folders.sentence_piece(path / 'pieces' / 'tokenizer.model', unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
  folders.folder(path / 'none')
  return path


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(['json', 'pieces', 'none']), st.dictionaries(
    st.sampled_from([name.removesuffix('.json') for name in special_tokens.FILES]),
    st.one_of(HOSTILE, st.dictionaries(st.sampled_from(KEYS), HOSTILE, max_size=4)), max_size=3))
def test_hostile_files_end_in_a_paragraph(hostile, kind, files):
  """Any JSON in any of the files: a vocabulary, or an error of ours in one line."""
  for name in special_tokens.FILES:
    (hostile / kind / name).unlink(missing_ok=True)
  folders.folder(hostile / kind, **files)
  try:
    found = folder_tokenizers.find_tokenizer(hostile / kind)
  except (ConfigError, DataError) as error:
    assert '\n' not in str(error) and len(str(error)) < 2000
    return
  assert found is None or found.vocabulary.size < 200_000


def test_kept_in_the_vocabulary_file(tmp_path):
  """A run's file holds tokenizer and special tokens; text ends at eos there, for its documents do."""
  made = folders.around(folders.byte_level(['<s>', '</s>', '<end>']), ['<s>'])
  s, e, end = (made.token_to_id(name) for name in ('<s>', '</s>', '<end>'))
  folder = folders.folder(tmp_path / 'a', made, tokenizer_config=dict(bos_token='<s>', eos_token='</s>'),
                          config=dict(eos_token_id=end, bos_token_id=s))
  assert read(folder).stop_ids == (end,)
  vocabulary_lib.train(spec(folder / 'tokenizer.json'), None, tmp_path / 'vocabulary')
  v = vocabulary_lib.load(types.SimpleNamespace(name='huggingface', sentinels=0), tmp_path / 'vocabulary')
  assert (v.bos_id, v.eos_id, v.stop_ids, v.before, v.suppressed) == (s, e, (end, e), (s,), ())
  assert v.file == (folder / 'tokenizer.json').read_bytes() and v.content == (tmp_path / 'vocabulary').read_bytes()
  again = vocabulary_lib.imported(spec(tmp_path / 'vocabulary'), tmp_path / 'vocabulary')  # as another run takes it
  assert again.fingerprint == v.fingerprint
  other = vocabulary_lib.imported(spec(tmp_path / 'vocabulary', eos='<end>'), tmp_path / 'vocabulary')
  assert other.eos_id == end and other.fingerprint != v.fingerprint
  for damage in (dict(bos=10 ** 6), dict(eos=-1), dict(eos='</s>'), dict(before=[10 ** 6]), dict(more=1)):
    fields = json.loads(v.content)
    fields['special'].update(damage)
    (tmp_path / 'damaged').write_text(json.dumps(fields))
    with pytest.raises(DataError, match='is damaged'):
      vocabulary_lib.load(types.SimpleNamespace(name='huggingface', sentinels=0), tmp_path / 'damaged')


def test_files_of_older_versions_are_read_as_they_were(tmp_path):
  """Runs and datasets that hold a bare tokenizer.json keep the tokens that were made with it."""
  made = folders.byte_level(['<s>', '</s>', '<pad>', '<unk>'])
  made.save(str(tmp_path / 'vocabulary'))
  v = vocabulary_lib.load(types.SimpleNamespace(name='huggingface', sentinels=0), tmp_path / 'vocabulary')
  assert v.eos_id == made.token_to_id('</s>') and v.pad_id == made.token_to_id('<pad>') and v.bos_id == 0
  assert v.fingerprint == vocabulary_lib.imported(spec(tmp_path / 'vocabulary'), tmp_path / 'vocabulary').fingerprint
  for config in (dict(bos_token='<s>'), {}):  # beside a run's file lies the run's own config.json
    folders.folder(tmp_path, config=config)
    assert vocabulary_lib.imported(spec(tmp_path / 'vocabulary'), tmp_path / 'vocabulary').bos_id == 0


# --- Added tokens and marks -----------------------------------------------------------------------


@pytest.mark.parametrize('flags', [{}, dict(lstrip=True), dict(rstrip=True), dict(lstrip=True, rstrip=True),
                                   dict(single_word=True), dict(normalized=True)], ids=str)
def test_masks_take_the_spaces_that_their_added_token_takes(flags, tmp_path):
  """The library itself, to which the mask is special, is the measure; RoBERTa's has lstrip."""
  import tokenizers
  mask = tokenizers.AddedToken('<mask>', special=True, **{'normalized': False, **flags})
  made = folders.byte_level(['<s>', '</s>', mask])
  v = read(folders.folder(tmp_path, made, tokenizer_config=dict(mask_token='<mask>', eos_token='</s>')))
  for text in ('the <mask> fox', 'the<mask>fox', '<mask>', ' <mask>  <mask> ', 'a  <mask>\n', 'the fox'):
    assert v.encode_marked(text).tolist() == made.encode(text, add_special_tokens=False).ids, text
  assert v.mask_id not in v.encode('the <mask> fox')
  # Other special tokens stay letters beside a mask.
  assert not {v.eos_id, made.token_to_id('<s>')} & set(v.encode_marked('<s> a <mask></s>').tolist())


def test_added_tokens_that_are_not_special_keep_their_flags(tmp_path):
  import tokenizers
  made = folders.byte_level(['</s>'])
  made.add_tokens([tokenizers.AddedToken('<tab>', lstrip=True, rstrip=True),
                   tokenizers.AddedToken('cat', single_word=True)])
  v = read(folders.folder(tmp_path, made, tokenizer_config=dict(eos_token='</s>')))
  for text in ('a <tab> b', 'a cat sat', 'concatenate', '<tab>'):
    assert v.encode(text).tolist() == made.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize('form', ['<extra_id_{}>', '\u2581<extra_id_{}>'])
@pytest.mark.parametrize('count', [1, 7, 12])
def test_sentinels_are_found_and_no_more_are_added(form, count, tmp_path):
  """T5's and umT5's <extra_id_k>, mT5's pieces that begin with a space, highest number first."""
  names = [form.format(k) for k in range(count)][::-1]
  folders.sentence_piece(tmp_path / 'spiece.model', pieces=names, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
  folders.folder(tmp_path, config=dict(model_type='t5', pad_token_id=0, eos_token_id=1, decoder_start_token_id=0))
  found = folder_tokenizers.find_tokenizer(tmp_path)
  v = found.vocabulary
  assert v.num_sentinels == count and v.name == 'sentencepiece'
  import sentencepiece
  model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'spiece.model'))
  assert v.size == model.vocab_size()
  assert [v.sentinel(k) for k in range(count)] == [model.piece_to_id(form.format(k)) for k in range(count)]
  text = 'the fox <extra_id_0> jumps<extra_id_0>'
  assert not set(v.special_ids.tolist()) & set(v.encode(text).tolist()) and 'extra' in v.decode(v.encode(text))
  assert v.encode_marked('the <extra_id_0> fox').tolist().count(v.sentinel(0)) == 1
  assert v.encode('the quick fox').tolist() == model.encode('the quick fox')


@pytest.mark.parametrize('name', [f'<extra_id_{"9" * 5000}>', '<extra_id_00>', '<extra_id_\u0660>'], ids=ascii_start)
def test_what_only_looks_like_a_sentinel_is_text(name, tmp_path):
  made = folders.byte_level(['</s>', '<extra_id_0>'], pieces=[name])
  v = read(folders.folder(tmp_path, made, tokenizer_config=dict(eos_token='</s>')))
  assert v.num_sentinels == 1 and v.sentinel(0) == made.token_to_id('<extra_id_0>')


@pytest.mark.parametrize('mark', [f'<extra_id_{"9" * 5000}>', '<extra_id_1>'], ids=ascii_start)
def test_marks_of_numbers_that_no_vocabulary_has(mark, tmp_path):
  made = folders.byte_level(['</s>', '<extra_id_0>'])
  v = read(folders.folder(tmp_path, made, tokenizer_config=dict(eos_token='</s>')))
  with pytest.raises(ConfigError, match='has 1 sentinels'):
    v.encode_marked(f'a {mark} b')


def test_sentinels_of_a_tokenizer_json(tmp_path):
  made = folders.byte_level(['</s>'], pieces=[f'\u2581<extra_id_{k}>' for k in range(5)])
  v = read(folders.folder(tmp_path, made, tokenizer_config=dict(eos_token='</s>')))
  assert v.num_sentinels == 5 and v.sentinel(3) == made.token_to_id('\u2581<extra_id_3>')
  assert v.encode_marked('the<extra_id_1>').tolist() == [*v.encode('the'), v.sentinel(1)]


def test_byt5_needs_no_file(tmp_path):
  folder = folders.folder(tmp_path, config=dict(model_type='t5'), tokenizer_config=dict(
      tokenizer_class='ByT5Tokenizer', additional_special_tokens=[f'<extra_id_{k}>' for k in range(125)]))
  found = folder_tokenizers.find_tokenizer(folder)
  v = found.vocabulary
  assert (found.spec['name'], v.num_sentinels, v.size, v.eos_id, v.pad_id) == ('bytes', 125, 384, 1, 0)
  assert v.encode('a').tolist() == [ord('a') + 3] and v.sentinel(0) == 259


# --- Two tokenizers in a folder -------------------------------------------------------------------


def llama_files(folder, **settings):
  """A tokenizer.model with <unk>, <s> and </s>, and the tokenizer.json that it is; returns the library's."""
  from t5like.vocabulary import tokenizer_export
  folder.mkdir(exist_ok=True)
  folders.sentence_piece(folder / 'tokenizer.model', unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
  folders.folder(folder, config=dict(model_type='llama', bos_token_id=1, eos_token_id=2), tokenizer_config=dict(
      tokenizer_class='LlamaTokenizer', **settings))
  import tokenizers
  s = spec(folder / 'tokenizer.model', 'sentencepiece')
  files, notes = tokenizer_export.files(vocabulary_lib.imported(s, s.path), 'document')
  assert not notes
  return tokenizers.Tokenizer.from_str(files['tokenizer.json'].decode())


def test_a_sentencepiece_model_with_a_beginning(tmp_path):
  llama_files(tmp_path / 'a', add_bos_token=True)
  found = folder_tokenizers.find_tokenizer(tmp_path / 'a')
  v = found.vocabulary
  assert found.spec['name'] == 'sentencepiece' and found.begins
  assert (v.bos_id, v.eos_id, v.unk_id, v.pad_id, v.stop_ids) == (1, 2, 0, None, (2,))
  llama_files(tmp_path / 'b', add_bos_token=False)
  assert not folder_tokenizers.find_tokenizer(tmp_path / 'b').begins


def test_of_two_tokenizers_the_richer_one(tmp_path):
  made = llama_files(tmp_path / 'a')
  size = made.get_vocab_size()
  folders.folder(tmp_path / 'a', made)
  assert folder_tokenizers.find_tokenizer(tmp_path / 'a').vocabulary.size == size
  made.add_special_tokens(['<|im_start|>', '<|im_end|>'])
  folders.folder(tmp_path / 'a', made, tokenizer_config=dict(
      bos_token='<s>', eos_token='<|im_end|>', tokenizer_class='PreTrainedTokenizerFast'))
  found = folder_tokenizers.find_tokenizer(tmp_path / 'a')
  assert found.spec['name'] == 'huggingface' and found.vocabulary.size == size + 2
  assert found.vocabulary.eos_id == size + 1 and found.begins
  (tmp_path / 'a' / 'tokenizer.json').unlink()
  (tmp_path / 'a' / 'added_tokens.json').write_text(json.dumps({'<|im_start|>': size}))
  with pytest.raises(ConfigError, match=r"adds 1 tokens to tokenizer.model, such as '<\|im_start\|>', which only a"):
    folder_tokenizers.find_tokenizer(tmp_path / 'a')


def test_two_tokenizers_that_contradict_each_other(tmp_path):
  llama_files(tmp_path / 'a')
  folders.folder(tmp_path / 'a', folders.byte_level(['<s>', '</s>']))
  with pytest.raises(ConfigError, match=r'contradict each other: id 3 is .* in tokenizer.model, .* in tokenizer.json'):
    folder_tokenizers.find_tokenizer(tmp_path / 'a')


# --- What objectives need -------------------------------------------------------------------------


def config(folder, objective, model='decoder', vocabulary=None, special=None, **data):
  c = tiny.config(folder)
  c.objective.update(objective)
  c.model.update(name=model, vocab_size=0)
  if model == 'encoder_decoder':
    c.model.update(position='relative', scale_attention=False)
  if model == 'encoder':
    c.model.head = 'mlm'
  c.vocabulary.update(vocabulary, special=special or {})
  c.data.update(data)
  config_lib.validate(c)
  return c


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
  """Files of imported vocabularies that say nothing of special tokens: {kind: values of config.vocabulary}."""
  path = tmp_path_factory.mktemp('bare')
  folders.folder(path, folders.byte_level(['<|x|>', '<|y|>']))
  folders.sentence_piece(path / 'plain.model', unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1)
  return dict(huggingface=dict(name='huggingface', path=str(path / 'tokenizer.json')),
              sentencepiece=dict(name='sentencepiece', path=str(path / 'plain.model'), sentinels=0))


MASKED = dict(name='masked_lm')
SPANS = dict(name='span_corruption')


@pytest.mark.parametrize('kind', ['huggingface', 'sentencepiece'])
@pytest.mark.parametrize('objective, model, data, lacks', [
    (dict(name='causal'), 'decoder', {}, 'eos'),
    (dict(name='causal'), 'decoder', dict(document_mask=False), 'eos'),
    (dict(name='causal'), 'decoder', dict(document_mask=False, append_eos=False), ''),
    (dict(name='prefix_lm'), 'decoder', dict(append_eos=False, document_mask=False), 'bos'),
    (SPANS, 'encoder_decoder', {}, 'eos'),
    (MASKED, 'encoder', dict(append_eos=False, document_mask=False), 'mask')])
def test_imported_vocabularies_that_lack_a_token_are_refused(kind, objective, model, data, lacks, bare, tmp_path):
  c = config(tmp_path, objective, model, bare[kind], **data)
  if not lacks:
    assert check_vocabulary(c).eos_id is None
    return
  with pytest.raises(ConfigError) as e:
    check_vocabulary(c)
  text = str(e.value)
  assert f'--config.vocabulary.special.{lacks}=' in text and bare[kind]['path'] in text and '\n' not in text


def test_what_the_config_says_is_enough(bare, tmp_path):
  c = config(tmp_path, dict(name='causal'), 'decoder', bare['huggingface'], dict(eos='<|x|>'))
  with pytest.raises(ConfigError, match="texts begin with.*special tokens are '<|x|>', '<|y|>'"):
    check_vocabulary(c)
  c.vocabulary.special = dict(eos='<|x|>', bos='<|y|>')
  v = check_vocabulary(c)
  assert v.pieces([v.eos_id, v.bos_id]) == ['<|x|>', '<|y|>']
  c.vocabulary.special = dict(eos='<|x|>', mask='<|y|>', cls='<|y|>')
  c = config(tmp_path, dict(MASKED, cls_sep=True), 'encoder', bare['huggingface'], c.vocabulary.special.to_dict())
  assert check_vocabulary(c).mask_id == v.bos_id


@pytest.mark.parametrize('objective, model, needs', [
    (SPANS, 'encoder_decoder', 2), (dict(name='iid_denoising'), 'encoder_decoder', 1), (SPANS, 'decoder', 1),
    (dict(name='mass'), 'encoder_decoder', 1), (dict(name='bert_style'), 'encoder_decoder', 1)])
def test_sentinels_of_files_are_counted(objective, model, needs, bare, tmp_path):
  for kind, special in (('huggingface', dict(eos='<|x|>', bos='<|y|>', start='<|y|>')),
                        ('sentencepiece', dict(eos=3, bos=4, start=4))):
    c = config(tmp_path, objective, model, bare[kind], special)
    with pytest.raises(ConfigError, match=r'needs \d+ sentinels .* has 0\. ') as e:
      check_vocabulary(c)
    spans = lengths.of(lengths.components(c)[0]).spans
    assert f'needs {max(1, spans)} sentinels' in str(e.value) and max(1, spans) >= needs


def test_kinds_of_our_own(tmp_path):
  for vocabulary in (dict(name='bytes', sentinels=0), dict(name='sentencepiece', size=600, sentinels=0),
                     dict(name='characters', sentinels=0)):
    assert check_vocabulary(config(tmp_path, dict(name='causal'), 'decoder', vocabulary)).eos_id == 1
    c = tiny.config(tmp_path, vocabulary=vocabulary, model=dict(vocab_size=0))
    c.objective.name, c.model.name = 'masked_lm', 'encoder'  # which the rules of configs refuse by themselves
    with pytest.raises(ConfigError, match='needs a token that stands for what is masked.*sentinels to at least 1'):
      check_vocabulary(c)
  c = tiny.config(tmp_path, vocabulary=dict(name='characters', specials=False), model=dict(vocab_size=0),
                  data=dict(document_mask=False))
  assert check_vocabulary(c).eos_id is None
  c.data.document_mask = True
  with pytest.raises(ConfigError, match='Set vocabulary.specials=True'):
    check_vocabulary(c)


def test_prepare_print_config_and_train_refuse_before_a_document_is_read(bare, tmp_path, monkeypatch):
  from t5like import commands
  from t5like.prepared import opening, prepare
  from t5like.sources import registry
  c = config(tmp_path, dict(name='causal'), 'decoder', bare['huggingface'])
  monkeypatch.setattr(registry, 'open_source', lambda *a, **k: pytest.fail('the text was opened'))
  for act in (lambda: prepare.prepare(c), lambda: commands._print_config(c), lambda: opening.open_data(c)):
    with pytest.raises(ConfigError, match='--config.vocabulary.special.eos='):
      act()
  assert not (tmp_path / 'prepared').exists()


def test_print_config_lists_them(bare, tmp_path, capsys):
  from t5like import commands
  commands._print_config(config(tmp_path, dict(name='causal'), 'decoder', bare['huggingface'],
                                dict(eos='<|x|>', bos='<|y|>')))
  shown = [line.split() for line in capsys.readouterr().out.split('\n')]
  ends = HuggingFace(open(bare['huggingface']['path'], 'rb').read()).own.ids
  assert ['eos', str(ends['<|x|>']), "'<|x|>'"] in shown and ['bos', str(ends['<|y|>']), "'<|y|>'"] in shown
  commands._print_config(config(tmp_path, SPANS, 'encoder_decoder', dict(name='sentencepiece', size=600, sentinels=9)))
  shown = [line.split() for line in capsys.readouterr().out.split('\n')]
  assert ['eos', '1'] in shown and ['start', '0'] in shown and ['sentinels', '9'] in shown


@pytest.mark.parametrize('special, problem', [
    (dict(end='</s>'), "vocabulary.special.end='</s>': unknown role"), (dict(eos=1.5), 'vocabulary.special.eos=1.5'),
    (dict(eos='</s>'), 'belongs to an imported tokenizer')])
def test_the_key_is_checked(special, problem, tmp_path):
  c = tiny.config(tmp_path)
  c.vocabulary.special = special
  with pytest.raises(ConfigError, match=problem):
    config_lib.validate(c)


def test_the_key_on_the_command_line(bare, tmp_path):
  (tmp_path / 'c.py').write_text('from t5like.config import base\n\ndef get_config():\n  c = base()\n'
                                 f'  c.vocabulary.update(**{bare["huggingface"]!r})\n'
                                 '  c.stop.tokens = 100_000\n  return c\n')
  c = config_lib.load(tmp_path / 'c.py', ['vocabulary.special.eos=<|x|>', 'vocabulary.special.bos=7'])
  assert c.vocabulary.special.to_dict() == dict(eos='<|x|>', bos=7)
  for text in ('9' * 5000, '\u0663', '\u00b2'):  # no ids, though int() takes the second for 3
    c = config_lib.load(tmp_path / 'c.py', [f'vocabulary.special.eos={text}'])
    assert c.vocabulary.special.eos == text
  c = config_lib.load(tmp_path / 'c.py', ["vocabulary.special={'eos': '<|x|>'}"])
  assert c.vocabulary.special.to_dict() == dict(eos='<|x|>')


def test_folders_of_prepared_data_keep_their_names(tmp_path):
  """The new key must not move datasets that older versions made."""
  from t5like.prepared import datasets
  c = tiny.config(tmp_path)
  c.data.source = 'python_docs'
  c.data.update(directory='prepared')
  essence = dict(datasets._essence(c.data), vocabulary={
      k: v for k, v in dict(c.vocabulary).items() if k != 'special'})
  assert datasets.folder(c).name == f'python-docs-{datasets.sha256(essence)[:10]}'
  named = c.copy_and_resolve_references()
  with named.unlocked():
    named.vocabulary.special = dict(eos=1)
  assert datasets.folder(named) != datasets.folder(c)


# --- In rows --------------------------------------------------------------------------------------


def test_rows_begin_with_the_beginning_and_documents_end(tmp_path):
  """Prepared through the whole pipeline: every segment's first input is <s>, every document's last token </s>."""
  from rich.console import Console

  from t5like.batches import inspect, pipeline
  from t5like.prepared import opening, prepare
  made = folders.around(folders.byte_level(['<s>', '</s>']), ['<s>'])
  folder = folders.folder(tmp_path / 'hf', made, tokenizer_config=dict(bos_token='<s>', eos_token='</s>'))
  c = tiny.config(tmp_path, vocabulary=dict(name='huggingface', path=str(folder / 'tokenizer.json')),
                  model=dict(vocab_size=0))
  prepare.prepare(c, say=lambda _: None)
  store = opening.open_data(c, say=lambda _: None)
  batch = pipeline.TrainRows(store, c).batch(range(8))
  s, e = made.token_to_id('<s>'), made.token_to_id('</s>')
  begins = (batch['positions'] == 0) & (batch['segments'] > 0)
  assert begins.sum() >= 8 and (batch['inputs'][begins] == s).all()
  assert not (batch['inputs'][~begins] == s).any() and (batch['targets'] == e).any()
  assert store.manifest['vocabulary']['special'] == dict(bos=s, eos=e)
  console = Console(record=True, width=200, file=io.StringIO())
  inspect.show(store, c, 0, 1, console=console)
  assert f'Special tokens: bos <s> ({s}), eos </s> ({e}), 0 sentinels' in console.export_text()
  # Changed settings are a changed vocabulary.
  (folder / 'tokenizer_config.json').write_text(json.dumps(dict(bos_token='</s>', eos_token='</s>')))
  with pytest.raises(DataError, match='has changed since it was prepared'):
    prepare.prepare(c, say=lambda _: None)


def test_data_of_older_versions_stays_valid(tmp_path):
  """A manifest that does not know of special tokens, with a bare tokenizer.json: prepared already, and says so."""
  from t5like.prepared import manifests, opening, prepare
  made = folders.byte_level(['<s>', '</s>'])
  folder = folders.folder(tmp_path / 'hf', made, tokenizer_config=dict(bos_token='<s>', eos_token='</s>'))
  c = tiny.config(tmp_path, vocabulary=dict(name='huggingface', path=str(folder / 'tokenizer.json')),
                  model=dict(vocab_size=0))
  target = prepare.prepare(c, say=lambda _: None)
  (target / 'vocabulary').write_bytes((folder / 'tokenizer.json').read_bytes())
  manifest = json.loads((target / 'manifest.json').read_text())
  manifest['vocabulary'].pop('special')
  manifest['inputs']['vocabulary'].pop('special')
  manifest['vocabulary']['fingerprint'] = HuggingFace(made.to_str(pretty=True).encode()).fingerprint
  (target / 'manifest.json').write_text(json.dumps(manifests.sealed(manifest)))
  said = []
  assert prepare.prepare(c, say=said.append) == target
  assert 'prepared already' in said[-1] and 'took special tokens by their names' in said[0]
  assert opening.open_data(c, say=said.append).vocabulary.bos_id == 0


def test_sums_over_beginnings_of_packed_pairs():
  from t5like.batches import packing
  pairs = [[(np.array([5, 6, 1]), np.array([7, 8, 1])), (np.array([9, 1]), np.array([4, 1]))]]
  batch = packing.pair_rows(pairs, 8, 8, start_id=3)
  assert batch['inputs'].tolist() == [[3, 7, 8, 3, 4, 0, 0, 0]]
  assert batch['targets'].tolist() == [[7, 8, 1, 4, 1, 0, 0, 0]]
  batch = packing.concatenated_rows(pairs, 12, bos_id=2)
  assert batch['inputs'].tolist() == [[2, 5, 6, 1, 7, 8, 2, 9, 1, 4, 0, 0]]
