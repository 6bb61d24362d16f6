"""What docs/objectives.md says, and which pictures it shows; objectives.py draws them."""
import dataclasses

HEAD = '''# Objectives, in pictures

Written by `python docs/objectives.py`, which gives one sentence to the code that training runs; a test keeps page and
pictures up to date. To see the same of your own data: `python main.py inspect --config=CONFIG --step=100`.

An objective defines what is read and what is predicted. `objective.name` selects it, `model.name` the architecture:

| `objective.name` | `decoder` | `encoder` | `encoder_decoder` |
|---|---|---|---|
| `causal` | yes | | |
| `prefix_lm` | yes | | yes |
| `masked_lm` | | yes | |
| `span_corruption`, `ul2`, `seq2seq` | yes | | yes |
| `iid_denoising`, `drop`, `mass`, `bert_style`, `deshuffling`, `lm` | yes | | yes |

How to read the pictures:

- **text** is the sentence, as the tokens of a vocabulary: `squir` and `+rel` are one word in two pieces, `</s>` ends a
  document. Orange is what is taken out of the inputs, or chosen to be predicted.
- **reads** and **predicts**, one above the other, are one position: having read the upper token (and all that it sees)
  the model must predict the lower one. What decoders read begins with `<pad>`, as in T5.
- Blue tokens are sentinels, which stand for what is missing: `<0>` is `<extra_id_0>`. Red ones are random, violet ones
  are modes.
- Green ones are predicted, and so are blue and grey ones beneath them. Those with a dashed border are present, but do
  not count in the loss.
- The grid shows **who sees whom**: each line is a query position, each column a key position that it may see. Orange
  ones are seen only because they belong to a prefix.

The sentence is short, so pictures corrupt 30 % of it in spans of 2 (`noise_density=0.3`, `mean_span=2`). The defaults
are T5's 0.15 and 3.
'''


@dataclasses.dataclass
class Shown:
  """A picture: `keys` are what it changes of its section's, `draw` and `part` are those of `objectives.make_row`."""
  name: str
  caption: str
  keys: dict
  draw: int = 0
  part: int = 0


@dataclasses.dataclass
class Section:
  """`keys`: what a config sets, shown as its lines."""
  title: str
  text: str
  keys: dict
  pictures: list


DECODER, ENCODER, BOTH = ({'model.name': name} for name in ('decoder', 'encoder', 'encoder_decoder'))
SHORT = {**BOTH, 'data.seq_len': 48}
TWO = {'data.packing': 'concat_split', 'data.seq_len': 17}
SECTIONS = [
    Section('causal', '''
The next token, from all that came before. GPT, Llama, OLMo and nearly all models that write text are trained on it;
every token is predicted. Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training". Configs:
`decoder_tiny.py`, `gpt2.py`, `tinyllama_1b1.py` and others.''', {'objective.name': 'causal'}, [
        Shown('causal', 'A decoder', DECODER)]),
    Section('Several documents in one row', '''
Rows are cut from all text joined (`data.packing='concat_split'`) or hold whole documents (`'best_fit'`). Either way
documents do not see each other, positions restart in each, and each begins with `<pad>`: the training of a document
does not depend on its neighbours. This holds for every objective on this page.''', {'data.document_mask': True}, [
        Shown('document_mask', 'Two documents, kept apart', {**DECODER, **TWO, 'objective.name': 'causal'}),
        Shown('no_document_mask', 'The same with `data.document_mask=False`, as GPT-2: text runs on over the ends', {
            **DECODER, **TWO, 'data.seq_len': 16, 'objective.name': 'causal', 'data.document_mask': False})]),
    Section('prefix_lm', '''
A random part of the beginning is given and attends to itself in both directions; the rest is predicted. For models that
will answer rather than continue. Liu et al. 2018 (arXiv 1801.10198) for decoders; Raffel et al. 2020 (T5, arXiv
1910.10683), sections 3.2.3 and 3.3.1. `model.prefix_mask=False` lets tokens of the prefix see only earlier ones, too.
Config: `t5_prefix_decoder.py`.''', {'objective.name': 'prefix_lm'}, [
        Shown('prefix_lm_decoder', 'A decoder', DECODER, draw=8),
        Shown('prefix_lm_encoder_decoder', 'An encoder-decoder, whose encoder reads the prefix', BOTH, draw=8)]),
    Section('masked_lm', '''
Some tokens are chosen; of these 80 % are read as `<mask>`, 10 % as a random token, 10 % as they are. Only these
are predicted. For models that understand rather than write: BERT, RoBERTa. Devlin et al. 2018 (arXiv 1810.04805). How
many are chosen is `objective.masking`:

| `objective.masking` | chosen of n tokens | as in |
|---|---|---|
| `bert` | round(0.15 n) | BERT's released code |
| `roberta` | 0.15 n, rounded up or down by chance | RoBERTa (Liu et al. 2019, arXiv 1907.11692), fairseq |
| `bernoulli` | each independently with a probability of 15 %, so the number varies | Hugging Face's collator |

`objective.cls_sep=True` puts `<cls>` and `</s>` around each row. Configs: `encoder_tiny.py`, `bert.py`,
`roberta_base.py`, `crammed_bert.py`.''', {
    'model.name': 'encoder', 'objective.name': 'masked_lm', 'sample.prompts': ('A squirrel <mask> acorns.',)}, [
        Shown('masked_lm_bert', "BERT's counts: a fixed number; one of them (red) is read as a random token", {
            **ENCODER, 'objective.cls_sep': True}, draw=238),
        Shown('masked_lm_bernoulli', '`masking="bernoulli"`: each independently', {
            **ENCODER, 'objective.masking': 'bernoulli'}, draw=62)]),
    Section('masked_lm, whole words', '''
All pieces of a word are chosen, or none: a piece is too easily guessed from the others. After the paper, by BERT's
authors (`whole_word` models of the google-research/bert repository). With `masking='roberta'` all pieces of a word are
read alike. Config: `bert.py:wwm`.''', {
    'model.name': 'encoder', 'objective.name': 'masked_lm', 'objective.whole_word': True,
    'sample.prompts': ('A squirrel <mask> acorns.',)}, [
        Shown('masked_lm_whole_word', '`squir` and `+rel` go together', ENCODER, draw=187)]),
    Section('span_corruption', '''
T5's objective. Spans of tokens are cut out, each replaced by a different sentinel; the targets are the sentinels, each
followed by the tokens that it replaced. Targets are short, so a step costs less than predicting everything. Raffel et
al. 2020 (arXiv 1910.10683), section 3.3.4. `objective.roll=True` rotates where the spans lie, so that a row does not
always end with one. Configs: `encdec_tiny.py`, `t5.py`, `t5_1_1.py`, `mt5_base.py`.''', {
    'objective.name': 'span_corruption', 'objective.noise_density': 0.15, 'objective.mean_span': 3.0}, [
        Shown('span_corruption', 'An encoder-decoder', {
            **BOTH, 'objective.noise_density': 0.3, 'objective.mean_span': 2.0}, draw=7),
        Shown('span_corruption_decoder', '''A decoder reads inputs, then targets; the inputs see each other in both \
directions and do not count in the loss''', {
            **DECODER, 'objective.noise_density': 0.3, 'objective.mean_span': 2.0}, draw=7)]),
    Section('ul2', '''
A mixture of denoisers, each announced by a mode token, so that one model learns to fill in, to continue and to write at
length. Tay et al. 2022 (arXiv 2205.05131), table 1. `objective.denoisers` lists mode, share, mean span and density;
these are the seven of the paper. R is T5's short spans, S a prefix LM, X extreme: long spans, or half of the text.
Modes are texts: the vocabulary may cut them into several tokens. Configs: `ul2_tiny.py`, `ul2_base.py`.''', {
    'data.seq_len': 512, 'objective.name': 'ul2',
    'objective.denoisers': ('[NLU] 0.2 3 0.15', '[NLU] 0.2 8 0.15', '[S2S] 0.2 prefix', '[NLG] 0.1 3 0.5',
                            '[NLG] 0.1 8 0.5', '[NLG] 0.1 64 0.15', '[NLG] 0.1 64 0.5')}, [
        Shown('ul2_r', "R: `'[NLU] 0.2 3 0.15'`, short spans, 15 %", SHORT),
        Shown('ul2_s', "S: `'[S2S] 0.2 prefix'`, the rest of the text", SHORT, draw=9, part=2),
        Shown('ul2_x', "X: `'[NLG] 0.1 3 0.5'`, half of the text in short spans", SHORT, part=3),
        Shown('ul2_x_long', "X: `'[NLG] 0.1 64 0.5'`, half of the text in one span", SHORT, part=6),
        Shown('ul2_x_decoder', 'The same on a decoder', {**SHORT, **DECODER}, part=6)]),
    Section('seq2seq', '''
Given targets: translation, summaries, questions, classes as words. Two templates make inputs and targets of the fields
of a record (see [data.md](data.md)); only targets count. For fine-tuning ([finetune.md](finetune.md)) and for tasks
mixed into pre-training. Raffel et al. 2020, section 2.4. Configs: `seq2seq_tiny.py`, `wmt_ende.py`,
`finetune_summarize.py`.''', {
    'objective.name': 'seq2seq', 'data.inputs': 'shorten: {text}', 'data.targets': '{short}',
    'data.packing': 'best_fit'}, [
        Shown('seq2seq', 'An encoder-decoder', {**BOTH, 'data.packing': 'none'}),
        Shown('seq2seq_decoder', 'A decoder', {**DECODER, 'data.packing': 'none'})]),
    Section('iid_denoising', '''
As `span_corruption`, but each token is corrupted independently; adjacent corrupted tokens share a sentinel.
Raffel et al. 2020, sections 3.1.4 and 3.3.2: the baseline of T5's experiments. T5 compared it with those that follow;
on a decoder they are laid out as `span_corruption` is, inputs first. Config: `t5_baseline.py:iid`.''', {
    'data.seq_len': 512, 'objective.name': 'iid_denoising'}, [
        Shown('iid_denoising', 'An encoder-decoder', SHORT, draw=9)]),
    Section('drop', '''
Corrupted tokens are removed without a sentinel, and are the targets. The shortest targets of all. Raffel et al. 2020,
section 3.3.2. Config: `t5_baseline.py:drop`.''', {'objective.name': 'drop'}, [
        Shown('drop', 'An encoder-decoder', BOTH, draw=9)]),
    Section('mass', '''
Each corrupted token becomes the same mask, and all of the text is predicted. Song et al. 2019 (MASS, arXiv 1905.02450),
as simplified by Raffel et al. 2020, section 3.3.2. Config: `t5_baseline.py:mass`.''', {'objective.name': 'mass'}, [
        Shown('mass', 'An encoder-decoder', BOTH, draw=9)]),
    Section('bert_style', '''
As `mass`, but one in ten corrupted tokens becomes a random one instead of the mask: BERT's objective, for an
encoder-decoder. Raffel et al. 2020, section 3.3.1. Config: `t5_baseline.py:bert_style`.''', {
    'objective.name': 'bert_style'}, [
        Shown('bert_style', 'An encoder-decoder', BOTH, draw=122)]),
    Section('deshuffling', '''
The text in random order has to be put back into order. Liu et al. 2019, as in Raffel et al. 2020, section 3.3.1. It is
the weakest of those that T5 compared. Config: `t5_baseline.py:deshuffling`.''', {'objective.name': 'deshuffling'}, [
        Shown('deshuffling', 'An encoder-decoder', BOTH)]),
    Section('lm', '''
No inputs: an encoder-decoder learns to write from nothing, a decoder as with `causal`. T5's language modelling
(section 3.2.3), for comparison. Config: `t5_baseline.py:lm`.''', {'objective.name': 'lm'}, [
        Shown('lm', 'An encoder-decoder', BOTH)]),
]
