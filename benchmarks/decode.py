"""Decoding speed beside transformers: the same weights, prompts and machine, in turns in one process.

    pip install -e '.[parity]' && python benchmarks/decode.py [--size=small] [--beams=4] [--threads=1]

Prints, for several batch sizes, tokens per second of both (greedy, or beam search; prompts of 64 tokens, 64 new
ones, prompts' pass included, compilation not) and the median of the ratios of rounds taken in turns. Both must
say the same tokens. fp32 on CPUs. --threads=1 keeps both to one core: on a machine that is shared, threads that
wait for each other say more about the neighbours than about either.
"""
import argparse
import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import numpy as np

from t5like import sharding
from t5like.decoding import beam, decode, prompt_rows, sampling
from t5like.huggingface import model_folders
from t5like.model import transformer

PROMPT, NEW, ROUNDS = 64, 64, 7
SIZES = dict(  # as configs/decoder_tiny.py, the default of t5like/config/base.py, and GPT-2's smallest
    tiny=dict(d_model=192, num_layers=4, num_heads=3, num_kv_heads=3, d_ff=512, vocab_size=2048),
    small=dict(d_model=512, num_layers=8, num_heads=8, num_kv_heads=8, d_ff=1408, vocab_size=8192),
    base=dict(d_model=768, num_layers=12, num_heads=12, num_kv_heads=12, d_ff=2048, vocab_size=32_000))


def model_config(**sizes):
  """A Llama of these sizes, fp32."""
  return transformer.ModelConfig(**dict(dict(
      name='decoder', num_encoder_layers=0, head_dim=64, activation='swiglu', block='pre_norm', norm='rmsnorm',
      norm_eps=1e-6, use_bias=False, embed_norm=False, position='rope', rope_theta=10_000.0, rope_fraction=1.0,
      max_positions=PROMPT + NEW, num_types=0, tie_embeddings=False, head='linear', scale_attention=True,
      qk_norm='none', logit_softcap=0.0, dropout=0.0, dropout_style='standard', init='gpt2', dtype='float32',
      attention='auto', scan_layers=False, remat='none'), **sizes))


def ours(model, params, ids, beams=1):
  """[B, NEW] ids after prompts [B, PROMPT]."""
  mesh = jax.sharding.get_mesh()
  prompt = sharding.place(mesh, prompt_rows.padded(ids.tolist(), True, len(ids)))
  if beams > 1:
    return np.asarray(beam.search(model, params, prompt, NEW, beams, 0.0, -1, ())[0])[:, 0]
  how, seeds = sampling.Options(temperature=0.0), sharding.place(mesh, np.zeros(len(ids), np.int32))
  state = sampling.start(model, params, prompt, NEW)
  pieces = []
  while len(pieces) * decode.PIECE < NEW:
    piece, state = sampling.more(model, how, decode.PIECE, params, state, jax.random.key(0), seeds, 0)
    pieces.append(np.asarray(piece))
  return np.concatenate(pieces, 1)


def theirs(model, ids, beams=1):
  import torch
  with torch.inference_mode():
    given = torch.from_numpy(ids).long()
    out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=NEW, min_new_tokens=NEW,
                         do_sample=False, num_beams=beams, length_penalty=0.0, eos_token_id=None, pad_token_id=0)
  return out[:, ids.shape[1]:].numpy()


def compare(size, batch_sizes=(1, 8), beams=1, rounds=ROUNDS):
  """[(rows, our tokens/s, theirs, median ratio)], printed as they are found."""
  import torch
  import transformers
  transformers.logging.set_verbosity_error()
  found = []
  mesh = sharding.make_mesh(dict(fsdp=1), jax.devices()[:1])
  with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
    config = model_config(**SIZES[size])
    model = transformer.build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    model_folders.write(f'{folder}/out', config.__dict__, params)
    other = transformers.AutoModelForCausalLM.from_pretrained(f'{folder}/out').eval()
    print(f'{transformer.count_params(model):,} parameters ({size}); {jax.devices()[0].device_kind}, '
          f'{len(os.sched_getaffinity(0))} cores, jax {jax.__version__}, torch {torch.__version__}, '
          f'transformers {transformers.__version__}, '
          f'Python {sys.version.split()[0]}')
    for rows in batch_sizes:
      ids = np.random.default_rng(rows).integers(3, config.vocab_size, (rows, PROMPT)).astype(np.int32)
      ways = dict(ours=lambda: ours(model, params, ids, beams), theirs=lambda: theirs(other, ids, beams))
      said = {name: way() for name, way in ways.items()}  # compiles, warms up
      agree = (said['ours'] == said['theirs']).mean()
      seconds = {name: [] for name in ways}
      for _ in range(rounds):
        for name, way in ways.items():
          start = time.perf_counter()
          way()
          seconds[name].append(time.perf_counter() - start)
      rate = {name: rows * NEW / statistics.median(s) for name, s in seconds.items()}
      ratio = statistics.median(b / a for a, b in zip(seconds['ours'], seconds['theirs']))
      print(f'rows {rows:3}  ours {rate["ours"]:8,.0f} tokens/s  transformers {rate["theirs"]:8,.0f}  ratio {ratio:.2f}'
            f'  same tokens {agree:.1%}', flush=True)
      found.append((rows, rate['ours'], rate['theirs'], ratio))
  return found


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--size', choices=SIZES, default='small')
  parser.add_argument('--beams', type=int, default=1)
  parser.add_argument('--threads', type=int, choices=(0, 1), default=0, help='0: as many as there are cores')
  arguments = parser.parse_args()
  if arguments.threads:  # before JAX counts the cores, at its first array
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_cpu_multi_thread_eigen=false'
    import torch
    torch.set_num_threads(1)
  compare(arguments.size, beams=arguments.beams)
