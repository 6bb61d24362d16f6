"""Writes tests/golden/llama_text.json: what transformers says with a tiny Llama whose tokenizer puts <s> before texts.

    pip install -e '.[parity]' && python -m tests.parity.make_golden_text

It holds the folder as save_pretrained writes it, but for the weights, which are made of a seed; greedy text with the
special tokens of the tokenizer, and without.
"""
import json
import pathlib
import tempfile

import torch
import transformers
from safetensors import safe_open

from tests import folders
from tests.parity import cases

PATH = pathlib.Path(__file__).parent.parent / 'golden' / 'llama_text.json'
PROMPTS = ('the quick ', 'of amber', 'a')
NEW = 12
FILES = ('config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json')


def main():
  made = folders.around(folders.byte_level(['<unk>', '<s>', '</s>']), ['<s>'])
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token='<s>', eos_token='</s>',
                                                   unk_token='<unk>')
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
      **dict(cases.LLAMA, vocab_size=len(tokenizer)), bos_token_id=tokenizer.bos_token_id,
      eos_token_id=tokenizer.eos_token_id)).eval()
  shapes = {key: tuple(x.shape) for key, x in model.state_dict().items()}
  with torch.no_grad():
    for key, x in cases.weights(shapes).items():
      model.state_dict()[key].copy_(torch.from_numpy(x))
  texts = {}
  for special in (True, False):
    texts[special] = []
    for prompt in PROMPTS:
      ids = tokenizer(prompt, return_tensors='pt', add_special_tokens=special).input_ids
      out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)[0]
      texts[special].append(tokenizer.decode(out[ids.shape[1]:], skip_special_tokens=True))
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = {name: (pathlib.Path(folder) / name).read_text() for name in FILES}
    with safe_open(pathlib.Path(folder) / 'model.safetensors', framework='numpy') as f:
      shapes = {key: f.get_slice(key).get_shape() for key in f.keys()}
  golden = dict(files=files, shapes=shapes, prompts=PROMPTS, tokens=NEW, texts=texts[True], without=texts[False],
                versions=dict(transformers=transformers.__version__, torch=torch.__version__))
  PATH.write_text(json.dumps(golden, indent=1) + '\n')
  print(PATH, PATH.stat().st_size, texts)


if __name__ == '__main__':
  main()
