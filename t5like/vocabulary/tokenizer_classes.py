"""What the classes of tokenizers of transformers do by default, regardless of a tokenizer's own file."""
# Special tokens of the classes of tokenizers of transformers 5.23 when the folder names none: {role: text}.
LLAMA = dict(bos='<s>', eos='</s>', unk='<unk>')
T5 = dict(eos='</s>', unk='<unk>', pad='<pad>')
GPT2 = dict(bos='<|endoftext|>', eos='<|endoftext|>', unk='<|endoftext|>')
BERT = dict(
    unk='[UNK]',
    sep='[SEP]',
    pad='[PAD]',
    cls='[CLS]',
    mask='[MASK]',
)
ROBERTA = dict(
    bos='<s>',
    eos='</s>',
    sep='</s>',
    cls='<s>',
    unk='<unk>',
    pad='<pad>',
    mask='<mask>',
)
CLASSES = dict(
    LlamaTokenizer=LLAMA,
    T5Tokenizer=T5,
    MT5Tokenizer=T5,
    ByT5Tokenizer=T5,
    GPT2Tokenizer=GPT2,
    GPTNeoXTokenizer=dict(GPT2, pad='<|padding|>'),
    Qwen2Tokenizer=dict(eos='<|endoftext|>', pad='<|endoftext|>'),
    BertTokenizer=BERT,
    RobertaTokenizer=ROBERTA,
)
CLASS_OF = dict(  # {model_type of config.json: its class}
    llama='LlamaTokenizer',
    t5='T5Tokenizer',
    mt5='T5Tokenizer',
    umt5='T5Tokenizer',
    gpt2='GPT2Tokenizer',
    gpt_neox='GPTNeoXTokenizer',
    bert='BertTokenizer',
    roberta='RobertaTokenizer',
    qwen2='Qwen2Tokenizer',
)
# Classes that add their own tokens around texts, regardless of tokenizer.json: roles before and after a text.
CLS_SEP = (('cls',), ('sep',))
EOS = ((), ('eos',))
AROUND = dict(
    GPTNeoXTokenizer=((), ()),
    BertTokenizer=CLS_SEP,
    RobertaTokenizer=CLS_SEP,
    T5Tokenizer=EOS,
    MT5Tokenizer=EOS,
    ByT5Tokenizer=EOS,
)
