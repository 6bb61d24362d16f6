"""The kernel for attention with a bias by distance (interpreted) against its reference, and that against numpy."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like.model.kernels import (
    relative_bias_attention as kernel,
    relative_bias_blocks as blocks,
    relative_bias_diagonals as diagonals,
    relative_bias_pieces as pieces,
)
from t5like.model.positions import RelativeBias

SMALL = (128, 128)


def example(T, S, N=2, K=2, H=8, B=1, documents=1, prefix=False, dtype=jnp.float32, seed=0):
  """(q, k, v, bias_NR), (query, key) and weights of the outputs: packed documents, and padding if there are many."""
  rng = np.random.default_rng(seed)
  q, k, v = (jnp.asarray(rng.normal(size=(B, n, heads, H)), dtype) for n, heads in ((T, N), (S, K), (S, K)))
  bias_NR = jnp.asarray(rng.normal(size=(N, T + S)), jnp.float32)

  def info(n):
    segments = np.sort(rng.integers(-1 if documents > 1 else 0, documents, (B, n))) + 1
    of = dict(segments=segments.astype(np.int32), prefix=rng.random((B, n)) < 0.3)
    return {name: jnp.asarray(x) for name, x in of.items() if prefix or name != 'prefix'}
  query = info(T)
  return (q, k, v, bias_NR), (query, query if T == S else info(S)), jnp.asarray(rng.normal(size=q.shape), jnp.float32)


def both(arrays, infos, mix, block_sizes=SMALL, start=0, **form):
  """(output, gradients of q, k, v, bias) of the kernel, and of the reference; `mix`: weights of the outputs."""
  ours = lambda *x: kernel.attention(*x, *infos, start=start, interpret=True, block_sizes=block_sizes, **form)
  theirs = lambda *x: kernel.reference(*x, *infos, start=start, **form)

  def run(attend):
    out, back = jax.vjp(attend, *arrays)
    return out, *back(mix.astype(out.dtype))
  return jax.jit(lambda: (run(ours), run(theirs)))()


def check(pair, tolerance=1e-5):
  for what, got, want in zip(('out', 'dq', 'dk', 'dv', 'dbias'), *pair):
    got, want = (np.asarray(x, np.float32) for x in (got, want))
    # Of a sum of many terms errors are relative to the largest; where all cancel (a single key) to 1.
    error = np.abs(got - want).max() / max(1.0, np.abs(want).max())
    assert np.isfinite(got).all() and error < tolerance, f'{what}: {error}'


CASES = {
    'causal': (dict(T=256, S=256), dict(causal=True)),
    'a last block in part, grouped heads, packed': (dict(T=300, S=300, N=4, K=2, B=2, documents=3), dict(causal=True)),
    'bidirectional, packed': (dict(T=127, S=127, N=2, K=1, documents=2), dict(causal=False)),
    'more keys than queries': (dict(T=130, S=257, documents=2), dict(causal=False, scale=0.3)),
    'a single key': (dict(T=257, S=1), dict(causal=False)),
    'one token': (dict(T=1, S=1), dict(causal=True)),
    'prefixes': (dict(T=256, S=256, documents=2, prefix=True), dict(causal=True)),
    'a soft cap': (dict(T=128, S=256, documents=2), dict(causal=False, softcap=2.0)),
    'a piece of the queries': (dict(T=128, S=384), dict(causal=True, start=256)),
    'a window': (dict(T=700, S=700, N=4, K=2, documents=3), dict(causal=True, window=(150, 0))),
    'a window both ways': (dict(T=640, S=640, documents=2), dict(causal=False, window=(100, 60))),
    'a window and prefixes': (dict(T=500, S=500, documents=2, prefix=True), dict(causal=True, window=(90, 200))),
    'a window in a piece of the queries': (dict(T=128, S=640), dict(causal=True, start=256, window=(140, 0))),
}


@pytest.mark.parametrize('case', CASES)
def test_kernel_is_its_reference(case):
  sizes, form = CASES[case]
  check(both(*example(**sizes), **form))


@pytest.mark.slow
@pytest.mark.parametrize('T, S', [(1, 1), (127, 127), (128, 128), (1000, 1000), (1000, 127), (128, 1000),
                                  (1, 1000), (127, 1)])
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('documents', [1, 3])
@pytest.mark.parametrize('group', [1, 2])
def test_all_lengths(T, S, causal, documents, group):
  if causal and T > S:
    pytest.skip('queries after all keys')
  arrays = example(T, S, N=2, K=2 // group, documents=documents)
  check(both(*arrays, causal=causal, start=S - T if causal else 0, block_sizes=(256, 384) if T == S else SMALL))
  check(both(*arrays, causal=causal, start=S - T if causal else 0, block_sizes=None))


@pytest.mark.parametrize('causal', [True, False])
def test_bfloat16(causal):
  """In bf16 both round weights and gradients of logits to 8 bits: 2 of these, 1e-2, is what can be asked."""
  check(both(*example(256, 256, documents=2, dtype=jnp.bfloat16), causal=causal), tolerance=1e-2)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape(data):
  any_shape(data)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape_at_length(data):
  any_shape(data)


def any_shape(data):
  draw = lambda *args: data.draw(st.sampled_from(args))
  T, causal, group = data.draw(st.integers(1, 300)), draw(True, False), draw(1, 2, 3)
  S = T if causal else data.draw(st.integers(1, 300))
  sizes = dict(N=2 * group, K=2, H=draw(4, 16), documents=draw(1, 2, 5), prefix=causal and draw(True, False))
  check(both(*example(T, S, seed=T, **sizes), causal=causal, block_sizes=(draw(128, 256), draw(128, 256)),
             scale=draw(1.0, 0.25), softcap=draw(0.0, 3.0),
             window=(data.draw(st.integers(0, 310)), data.draw(st.integers(0, 310))) if draw(True, False) else None))


def test_queries_in_pieces_for_the_gradient(monkeypatch):
  """Where gradients of all queries do not fit, the pass backwards takes some at a time."""
  monkeypatch.setattr(kernel, 'vmem', lambda: 11 * 2 ** 19)
  assert kernel._piece(blocks.Form(True, 1.0, 0.0, *SMALL, 640, 640, True), 8) == 384
  check(both(*example(600, 600, documents=2), causal=True))


IN_PIECES = {  # of 256 queries and 256 keys
    'causal, packed': (dict(T=600, S=600, N=4, K=2, documents=3), dict(causal=True)),
    'bidirectional': (dict(T=300, S=700, documents=2), dict(causal=False)),
    'prefixes': (dict(T=520, S=520, documents=2, prefix=True), dict(causal=True)),
    'a piece of the queries': (dict(T=128, S=640), dict(causal=True, start=256)),
    'a window': (dict(T=640, S=640), dict(causal=True, window=(100, 0))),
}


@pytest.mark.parametrize('case', IN_PIECES)
def test_rows_too_long_for_one_call(case, monkeypatch):
  monkeypatch.setattr(kernel, '_longest', lambda: 256)
  sizes, form = IN_PIECES[case]
  check(both(*example(**sizes), **form))


def test_rows_too_long_for_one_call_at_a_slot_that_only_the_device_knows(monkeypatch):
  monkeypatch.setattr(kernel, '_longest', lambda: 256)
  arrays, infos, mix = example(128, 640)
  check(jax.jit(lambda start: tuple(both(arrays, infos, mix, causal=True, start=start)))(jnp.int32(256)))


def test_pieces_are_even_and_whole():
  assert pieces.spans(32_768, 32_768, 1024) == [(0, 32_768)]
  assert pieces.spans(33_792, 32_768, 1024) == [(0, 17_408), (17_408, 16_384)]
  for length in range(128, 4096, 128):
    spans = pieces.spans(length, 1000, 128)
    assert [at for at, _ in spans] == [sum(n for _, n in spans[:i]) for i in range(len(spans))]
    assert sum(n for _, n in spans) == length and all(n % 128 == 0 and n <= 1024 for _, n in spans)


def test_a_first_slot_that_only_the_device_knows():
  arrays, infos, mix = example(128, 384)
  check(jax.jit(lambda start: tuple(both(arrays, infos, mix, causal=True, start=start)))(jnp.int32(128)))


@pytest.mark.parametrize('causal, softcap', [(True, 0.0), (False, 3.0)])
def test_reference_is_attention_written_out(causal, softcap):
  (q, k, v, bias), (query, key), _ = example(5, 7, N=4, K=2, H=3, B=2, documents=2)
  got = kernel.reference(q, k, v, bias, query, key, causal, 0.7, softcap, start=1)
  q, k, v, bias, of_query, of_key = (np.asarray(x, np.float64) for x in (
      q, k, v, bias, query['segments'], key['segments']))
  for b, t, n in np.ndindex(2, 5, 4):
    seen = [s for s in range(7) if of_query[b, t] == of_key[b, s] > 0 and (s <= t + 1 or not causal)]
    logits = np.array([0.7 * q[b, t, n] @ k[b, s, n // 2] + bias[n, t - s + 7] for s in seen])
    p = np.exp(softcap * np.tanh(logits / softcap) if softcap else logits)
    want = (p / p.sum()) @ v[b, seen, n // 2] if seen else np.zeros(3)
    np.testing.assert_allclose(got[b, t, n], want, atol=1e-5)


def test_gradient_of_the_table_by_finite_differences():
  (q, k, v, _), infos, mix = example(130, 130, documents=2, seed=1)
  one_hot = jax.nn.one_hot(RelativeBias.buckets(130 - jnp.arange(260), False), 32)
  table = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32)), jnp.float32)
  value = jax.jit(lambda table: jnp.sum(mix * kernel.attention(
      q, k, v, table @ one_hot.T, *infos, True, interpret=True, block_sizes=SMALL)))
  gradient = jax.jit(jax.grad(value))(table)
  assert np.abs(gradient[:, :24]).min() > 0  # no document is long enough for the last buckets
  for n, bucket in ((0, 0), (1, 3), (0, 17), (1, 20)):
    step = jnp.zeros_like(table).at[n, bucket].set(0.03)
    by_difference = (value(table + step) - value(table - step)) / 0.06
    np.testing.assert_allclose(gradient[n, bucket], by_difference, atol=2e-3 * float(jnp.abs(gradient).max()))


def test_a_row_becomes_a_diagonal_block_and_back():
  rng = np.random.default_rng(0)
  vector = rng.normal(size=(1, 640)).astype(np.float32)
  rows = jax.jit(diagonals.skew)(vector)
  np.testing.assert_array_equal(rows, np.stack([np.roll(vector[0], r) for r in range(128)]))
  r, x = np.indices((256, 384))
  block = np.concatenate([rows[:, 256 - c:256 - c + 384] for c in (0, 128)])
  np.testing.assert_array_equal(block, vector[0, 256 + x - r])
  x = rng.normal(size=(128, 640)).astype(np.float32)
  turned = sum(np.roll(x[r], -r) for r in range(128))
  np.testing.assert_allclose(jax.jit(diagonals.unskewed_sum)(x)[0], turned, atol=1e-4)


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([128, 256]), st.sampled_from([128, 384]), st.booleans(),
       st.integers(0, 700), st.none() | st.integers(0, 900), st.none() | st.integers(0, 900))
def test_visits_are_the_pairs_of_blocks_that_see_each_other(rows, cols, block_q, block_k, causal, first, before, after):
  form = blocks.Form(causal, 1.0, 0.0, block_q, block_k, rows * block_q, cols * block_k, True, before, after)
  visited = list(map(tuple, kernel.visits(form, first)))
  distance = first + np.arange(rows * block_q)[:, None] - np.arange(cols * block_k)
  is_seen = (distance >= 0) | (not causal)
  is_seen &= (distance <= (10_000 if before is None else before)) & (-distance <= (10_000 if after is None else after))
  pairs = is_seen.reshape(rows, block_q, cols, block_k).any((1, 3))
  seen = set(map(tuple, np.argwhere(pairs).tolist()))
  assert visited == sorted(set(visited)) and seen <= set(visited)
  assert {i for i, _ in visited} == set(range(rows)) and {j for _, j in visited} == set(range(cols))
  # Rows and columns that see nothing are visited once, so that they are written.
  assert len(visited) <= len(seen) + (~pairs.any(0)).sum() + (~pairs.any(1)).sum()
  assert len(kernel.visits(form, None)) == rows * cols


def test_blocks_are_even_and_smaller_under_a_causal_mask(monkeypatch):
  assert kernel.vmem() == 56 * 2 ** 20
  for length in (1, 127, 128, 129, 512, 1000, 1408, 2048, 8192, 8193):
    for causal in (True, False):
      b = kernel.block_size(length, causal)
      blocks_of_it = -(-length // b)
      assert b % 128 == 0 and b <= kernel.LARGEST and blocks_of_it * b - length < 128 * blocks_of_it
  assert kernel.block_size(512, True) == kernel.block_size(2048, True) == 512 < kernel.block_size(8192, True) == 1024
  monkeypatch.setattr(kernel, 'vmem', lambda: 14 * 2 ** 20)  # v4
  assert kernel.block_size(8192, True) == 512
