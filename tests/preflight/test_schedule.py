"""Times, FLOPs and bytes that are read from compiled programs, of forms that several compilers write."""
import gzip
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5like import config as config_lib
from t5like.errors import ConfigError
from t5like.model.kernels import balanced, visits as visits_lib
from t5like.preflight import costs, hlo, hlo_schedule, kernel_calls, plausible, topologies
from tests.conftest import ROOT

PROGRAMS = ROOT / 'tests' / 'programs'
V5E = topologies.parse('v5e-256')

# A loop of 5 trips: a product of 1024 x 512 x 256 matrices in bf16, a copy that is overlapped by it, an
# asynchronous all-gather, and an all-reduce that the core waits for.
MODULE = '''HloModule jit_train_step, is_scheduled=true, num_partitions=256

%product (a: bf16[1024,512], b: bf16[512,256]) -> bf16[1024,256] {
  %a = bf16[1024,512]{1,0} parameter(0)
  %b = bf16[512,256]{1,0} parameter(1)
  ROOT %p = bf16[1024,256]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

%body (s: (s32[], bf16[1024,512], bf16[512,256])) -> (s32[], bf16[1024,512], bf16[512,256]) {
  %s = (s32[], bf16[1024,512]{1,0}, bf16[512,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = bf16[1024,512]{1,0} get-tuple-element(%s), index=1
  %w = bf16[512,256]{1,0} get-tuple-element(%s), index=2
  %gather-start = (bf16[2,256]{1,0}, bf16[512,256]{1,0}) all-gather-start(%w), replica_groups=[1,256]<=[256]
  %copy-start = (bf16[512,256]{1,0:S(1)}, bf16[512,256]{1,0}, u32[]) copy-start(%w)
  %y = bf16[1024,256]{1,0} fusion(%x, %w), kind=kOutput, calls=%product
  %copy-done = bf16[512,256]{1,0:S(1)} copy-done(%copy-start)
  %gather-done = bf16[512,256]{1,0} all-gather-done(%gather-start)
  %reduced = bf16[1024,256]{1,0} all-reduce(%y), replica_groups={{0,1}}, to_apply=%add, metadata={op_name="layer"}
  ROOT %out = (s32[], bf16[1024,512]{1,0}, bf16[512,256]{1,0}) tuple(%i, %x, %w)
}

%condition (s: (s32[], bf16[1024,512], bf16[512,256])) -> pred[] {
  %s.1 = (s32[], bf16[1024,512]{1,0}, bf16[512,256]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (q: (s32[], bf16[1024,512], bf16[512,256])) -> (s32[], bf16[1024,512], bf16[512,256]) {
  %q = (s32[], bf16[1024,512]{1,0}, bf16[512,256]{1,0}) parameter(0)
  ROOT %while = (s32[], bf16[1024,512]{1,0}, bf16[512,256]{1,0}) while(%q), condition=%condition, body=%body
}
'''
# The same, its parts of tuples named as libtpu 0.0.50 does.
WITH_PARTS = MODULE
for _name, _index in (('i', 0), ('x', 1), ('w', 2)):
  WITH_PARTS = re.sub(rf'  %{_name} = .*\n', '', WITH_PARTS)
  WITH_PARTS = re.sub(rf'%{_name}(?=[,)])', f'%s#{_index}', WITH_PARTS)


def predicted(text, topology=V5E, kernels=kernel_calls.flops):
  return hlo_schedule.Schedule(text, topology, kernels).predict()


def entry(lines, computations='', partitions=256):
  """A module whose entry runs these instructions, from two parameters: %x bf16[1024,512] and %w bf16[512,256]."""
  return f'''HloModule jit_train_step, is_scheduled=true, num_partitions={partitions}

{computations}

ENTRY %main (x: bf16[1024,512], w: bf16[512,256]) -> bf16[1024,256] {{
  %x = bf16[1024,512]{{1,0}} parameter(0)
  %w = bf16[512,256]{{1,0}} parameter(1)
{lines}
  ROOT %root = bf16[1024,256]{{1,0}} dot(%x, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}
'''


@pytest.mark.parametrize('text', [MODULE, WITH_PARTS], ids=['get-tuple-element', 'parts'])
def test_a_schedule_by_hand(text):
  g, found = topologies.GENERATIONS['v5e'], predicted(text)
  assert found.counts['flops'] == 5 * 2 * 1024 * 512 * 256
  size = lambda *dims: 2 * dims[0] * dims[1]
  memory = (size(1024, 512) + size(512, 256) + size(1024, 256)) / g.bandwidth
  product = max(2 * 1024 * 512 * 256 / g.flops / hlo_schedule.MXU, memory)
  gather = size(512, 256) * 255 / 256 / (g.link * 2 * 2) + 2 * hlo_schedule.LATENCY
  reduce = 2 * size(1024, 256) * 0.5 / (g.link * 2) + hlo_schedule.LATENCY
  after_product = max(product, size(512, 256) / g.bandwidth, gather)
  assert found.seconds == pytest.approx(5 * (after_product + reduce))
  assert found.counts['link_bytes'] == pytest.approx(5 * (size(512, 256) * 255 / 256 + size(1024, 256)))
  assert found.times['exposed'] == pytest.approx(
      5 * (after_product - max(product, size(512, 256) / g.bandwidth) + reduce))
  assert found.waits[0][1] == 'reduced' and 'layer' in found.waits[0][2] and found.waits[0][2].endswith('x 5')


@pytest.mark.parametrize('line, words', [
    ('%a = bf16[1024,256] add(%y, %w)', 'operand %y in main is not among its instructions'),
    ('%a = bf16[1024,256] add(%x#1, %w)', 'part of something that is not a tuple'),
    ('%a = bf16[1024,256] add(%x@1, %w)', 'not among its instructions'),
    ('%a = bf16[1024,256] add(x, w)', 'does not name an instruction'),
    ('%a = bf16[1024,256] negate(%t#5), attributes', 'not among'),
    ('%a = bf16[1024,256] fft(%x)', "kind 'fft'"),
    ('%a = bf16[1024,256] cholesky(%x)', "kind 'cholesky'"),
    ('%a = bf16[1024,256] custom-call(%x), custom_call_target="SomethingNew"', "custom call 'SomethingNew'"),
    ('%a = bf16[1024,256] custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="my/kernel"}',
     'Pallas kernel %a'),
    ('%a = bf16[1024,256] custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="splash_mha_fwd"}',
     'does not say which blocks'),
    ('%a = bf16[1024,512] all-reduce(%x), to_apply=%add', 'groups of devices cannot be read: it has none'),
    ('%a = bf16[1024,512] all-reduce(%x), replica_groups=V3[1,2], to_apply=%add', 'groups of devices cannot be read'),
    ('%a = bf16[1024,512] all-reduce(%x), replica_groups={{0,300}}, to_apply=%add', 'does not have'),
    ('%a = bf16[1024,512] all-reduce(%x), replica_groups={{0,1},{2,3,4}}, to_apply=%add', 'different sizes'),
    ('%a = bf16[1024,512] all-gather-done(%x)', 'not started'),
    ('%a = bf16[1024,512] fusion(%x), kind=kLoop, calls=%missing', "does not hold: 'missing'"),
    ('%a = bf16[1024,512] conditional(%x, %x, %w)', 'does not name the computations'),
    ('%a = float128[1024,512] add(%x, %x)', 'float128'),
    ('%a = bf16[1024,<=512] infeed(%x)', "kind 'infeed'"),
    ('%a = (bf16[8], u32[], token[]) send(%x, %x), channel_id=1', 'sends to an unknown place')])
def test_what_is_not_understood_is_refused(line, words):
  with pytest.raises(hlo.Unreadable, match=re.escape(words)):
    predicted(entry(f'  {line}'))


def test_custom_calls_inside_of_fusions_are_checked_too():
  inside = '''%fused (p: bf16[1024,512]) -> bf16[1024,512] {
  %p = bf16[1024,512]{1,0} parameter(0)
  ROOT %c = bf16[1024,512]{1,0} custom-call(%p), custom_call_target="SomethingNew"
}'''
  with pytest.raises(hlo.Unreadable, match='SomethingNew'):
    predicted(entry('  %a = bf16[1024,512]{1,0} fusion(%x), kind=kLoop, calls=%fused', inside))


def test_of_a_conditional_the_longest_branch_counts():
  branches = '''%short (p: bf16[1024,512]) -> bf16[1024,512] {
  %p = bf16[1024,512]{1,0} parameter(0)
  ROOT %n = bf16[1024,512]{1,0} negate(%p)
}

%long (p.1: bf16[1024,512]) -> bf16[1024,512] {
  %p.1 = bf16[1024,512]{1,0} parameter(0)
  %n.1 = bf16[1024,512]{1,0} negate(%p.1)
  ROOT %n.2 = bf16[1024,512]{1,0} negate(%n.1)
}'''
  plain = predicted(entry('')).seconds
  one = 2 * 2 * 1024 * 512 / topologies.GENERATIONS['v5e'].bandwidth
  for form in ('branch_computations={%short, %long}', 'true_computation=%short, false_computation=%long'):
    found = predicted(entry(f'  %c = bf16[1024,512] conditional(%x, %x, %x), {form}', branches))
    assert found.seconds == pytest.approx(plain + 2 * one)


def test_a_custom_call_that_is_known_costs_its_bytes():
  plain = predicted(entry('')).seconds
  found = predicted(entry('  %t = f32[1024,8]{1,0} custom-call(%x), custom_call_target="TopK"'))
  bandwidth = topologies.GENERATIONS['v5e'].bandwidth
  assert found.seconds - plain == pytest.approx((2 * 1024 * 512 + 4 * 1024 * 8) / bandwidth)


ASYNC = """%gather (p: bf16[2,256]) -> bf16[512,256] {
  %p = bf16[2,256]{1,0} parameter(0)
  ROOT %g = bf16[512,256]{1,0} all-gather(%p), replica_groups={}, dimensions={0}
}"""


def test_what_is_started_without_its_operands_begins_when_it_gets_them():
  """As collectives that run on sparse cores are written: work before the update is not beside them."""
  start = '%s = ((), (), (s32[1]{0})) async-start(), calls=%gather'
  update = '%u = ((bf16[2,256]{1,0}), bf16[512,256]{1,0}) async-update(%s, %w)'
  work, done = '%n = bf16[1024,512]{1,0} negate(%x)', '%d = bf16[512,256]{1,0} async-done(%u)'
  of = lambda *lines: predicted(entry('\n'.join(f'  {line}' for line in lines), ASYNC))
  before, beside = of(start, work, update, done), of(start, update, work, done)
  gather = 2 * 512 * 256 * 255 / 256 / (45e9 * 4) + 2 * hlo_schedule.LATENCY
  memory = 2 * 2 * 1024 * 512 / 819e9
  assert before.times['exposed'] == pytest.approx(gather) and before.counts['link_bytes'] == 2 * 512 * 255
  assert beside.seconds == pytest.approx(before.seconds - min(memory, gather))


@pytest.mark.parametrize('kind, slices, share', [('ALL_REDUCE', 2, 1), ('ALL_REDUCE', 4, 1.5), ('ALL_GATHER', 4, 3),
                                                 ('REDUCE_SCATTER', 4, 0.75)])
def test_what_slices_send_to_each_other_takes_the_network(kind, slices, share):
  attributes = (f'channel_id=1, frontend_attributes={{_xla_host_transfer_rendezvous="sum_0",'
                f'_xla_megascale_transfer_type="{kind}"}}')
  text = entry(f"""  %t = token[] after-all()
  %s = (bf16[1024,512]{{1,0}}, u32[], token[]) send(%x, %t), {attributes}
  %r = (bf16[1024,512]{{1,0}}, u32[], token[]) recv(%t), {attributes}
  %sd = token[] send-done(%s), channel_id=1
  %rd = (bf16[1024,512]{{1,0}}, token[]) recv-done(%r), channel_id=1""")
  found = predicted(text, topologies.parse(f'{slices}xv5e-256'))
  assert found.counts['slice_bytes'] == 2 * 1024 * 512 * share
  assert found.times['slices'] == pytest.approx(2 * 1024 * 512 * share / (25e9 / 8))
  unpriced = predicted(text, topologies.parse(f'{slices}xv4-512'))
  assert unpriced.counts['slice_bytes'] == found.counts['slice_bytes'] and unpriced.times['network'] == 0


def test_a_group_over_several_slices_takes_both_links_and_network():
  of = lambda groups: predicted(entry(f'  %a = bf16[1024,512] all-reduce(%x), replica_groups={groups}, to_apply=%add',
                                      partitions=512), topologies.parse('2xv5e-256'))
  size = 2 * 1024 * 512
  within, across, all_of = of('[2,256]<=[512]'), of('[256,2]<=[2,256]T(1,0)'), of('[1,512]<=[512]')
  assert 'slice_bytes' not in within.counts and within.counts['link_bytes'] == pytest.approx(2 * size * 255 / 256)
  assert across.counts['slice_bytes'] == size and across.counts['link_bytes'] == 0
  assert all_of.counts['slice_bytes'] == size / 256 and all_of.counts['link_bytes'] == within.counts['link_bytes']
  assert across.seconds > all_of.seconds > within.seconds


# --- Groups of devices ----------------------------------------------------------------------------


@pytest.mark.parametrize('text, first, count', [
    ('replica_groups={{0,1,2},{3,4,5}}', [0, 1, 2], 2), ('replica_groups={}', [*range(256)], 1),
    ('replica_groups=[2,128]<=[256]', [*range(128)], 2),
    ('replica_groups=[128,2]<=[2,128]T(1,0)', [0, 128], 128),
    ("replica_groups=mesh['a'=2,'b'=64] {'b'}", [*range(64)], 2),
    ("replica_groups=mesh['a'=2,'b'=64] {'a'}", [0, 64], 64),
    ("replica_groups=mesh['axis_0'=128,'axis_1'=1,'axis_2'=2], device_ids=([2,128]T(1,0)) {'axis_0'}",
     [*range(128)], 2),
    ("replica_groups=mesh['axis_0'=128,'axis_1'=2], device_ids=([2,128]T(1,0)) {'axis_1'}, dimensions={0}",
     [0, 128], 128),
    ("replica_groups=mesh['a'=8,'b'=2] {'a':(2)4}", [0, 2, 4, 6], 4),
    ("replica_groups=mesh['a'=8,'b'=2] {'a':(1)2,'b'}", [0, 1, 8, 9], 4),
    ('source_target_pairs={{0,1},{1,0}}', [0, 1], 2)])
def test_groups_in_all_their_forms(text, first, count):
  found = hlo.groups(text, 256)
  assert found.ids[0].tolist() == first and len(found.ids) == count and hlo.group_size(text, 256) == len(first)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_a_mesh_and_the_list_of_its_groups_are_the_same(sizes, data):
  axes = data.draw(st.lists(st.sampled_from(range(len(sizes))), min_size=1, unique=True))
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  rest = [i for i in range(len(sizes)) if i not in axes]
  want = ids.transpose(*rest, *axes).reshape(-1, math.prod(sizes[i] for i in axes))
  mesh = ','.join(f"'axis_{i}'={n}" for i, n in enumerate(sizes))
  text = f"replica_groups=mesh[{mesh}] {{{','.join(repr(f'axis_{i}') for i in axes)}}}"
  listed = 'replica_groups={' + ','.join('{' + ','.join(map(str, row)) + '}' for row in want) + '}'
  for form in (text, listed):
    assert (hlo.groups(form, math.prod(sizes)).ids == want).all()


def test_texts_of_types():
  (a, b, c) = hlo.arrays('(bf16[4,2048]{1,0:T(8,128)(2,1)S(1)}, f32[8]{0}, pred[])')
  assert a == hlo.Array((4, 2048), 16384, False, 'bf16') and b == hlo.Array((8,), 32, True, 'f32') and c.bytes == 1
  nested = '((bf16[4]{0}, s32[]), /*index=1*/(f32[2]{0:S(1)}, u32[]), pred[3]{0})'
  assert hlo.part(nested, 1) == '(f32[2]{0:S(1)}, u32[])' and hlo.part(hlo.part(nested, 0), 1) == 's32[]'
  assert hlo.part(nested, 2) == 'pred[3]{0}'


# --- Products -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(*[st.integers(1, 5)] * 3, st.integers(1, 3), st.integers(0, 4), *[st.integers(1, 3)] * 2)
def test_pairs_that_a_convolution_multiplies(size, kernel, outputs, stride, pad, base, spread):
  """Against multiplying rows of ones, which gives the number of pairs of each output."""
  dilated = np.zeros(pad + (size - 1) * base + 1 + 40)
  dilated[pad:pad + (size - 1) * base + 1:base] = 1
  want = sum(dilated[out * stride + k * spread] for out in range(outputs) for k in range(kernel))
  assert costs._pairs(size, kernel, outputs, stride, pad, base, spread) == want


@pytest.mark.parametrize('left, right, out, attributes, want', [
    ((1024, 512), (512, 256), (1024, 256), 'dim_labels=bf_io->bf', 1024 * 512 * 256),
    # Heads moved over a batch of one: queries of 16 heads; their sum; weights' gradients over 4 rows.
    ((4, 2048, 2048, 1), (2048, 16, 128, 1), (4, 2048, 16, 128),
     'window={size=1x16 pad=0_0x15_15 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f', 4 * 2048 * 2048 * 16 * 128),
    ((4, 16, 2048, 128), (1, 16, 128, 2048), (4, 2048, 2048, 1),
     'window={size=1x16}, dim_labels=01bf_01io->0bf1', 4 * 2048 * 2048 * 16 * 128),
    ((4, 2048, 8192), (4, 2048, 512), (8192, 512, 1), 'window={size=4}, dim_labels=0fb_0io->bf0',
     4 * 2048 * 8192 * 512),
    # A batch of 8 products, as strides and holes that meet once each.
    ((8, 64, 32), (8, 32, 16), (8, 64, 16),
     'window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf', 8 * 64 * 32 * 16),
    ((6, 64, 32), (1, 16, 8), (6, 64, 8), 'window={size=1}, dim_labels=0bf_0io->0bf, feature_group_count=2',
     6 * 64 * 16 * 8)])
def test_products_that_are_written_as_convolutions(left, right, out, attributes, want):
  assert costs.convolution(left, right, out, attributes) == 2 * want


# --- Kernels --------------------------------------------------------------------------------------


def kernel(name, origin='', cost=''):
  attributes = f'custom_call_target="tpu_custom_call", metadata={{op_name="{origin}"}}, backend_config={{{cost}}}'
  return hlo.Op(name, '', 'custom-call', [], attributes, False)


def test_kernels_are_priced_by_the_blocks_that_they_visit():
  visits = visits_lib.Visits('causal', 4, 16, 128, 512, 512, 10)
  path = f'jit(train_step)/transpose(jvp())/attention/shard_map/{visits.label}/vmap(x)/splash_mha_'
  pair = 2 * 4 * 16 * 512 * 512 * 128
  assert visits_lib.read(path) == visits
  assert kernel_calls.flops(kernel('splash_mha_fwd_residuals.1', path + 'fwd_residuals')) == 10 * 2 * pair
  assert kernel_calls.flops(kernel('custom-call.7', path + 'dkv_no_residuals')) == 10 * 5 * pair
  cost = '"custom_call_config":{"cost_estimate":{"bytes_accessed":"1","flops":"123"}}'
  assert kernel_calls.flops(kernel('jvp_relative_bias_causal_forward_.1', cost=cost)) == 123
  for op in (kernel('splash_mha_dq', path + 'dq'), kernel('relative_bias_forward'), kernel('other', path[:-11], cost),
             kernel('relative_bias_forwards', cost=cost)):
    with pytest.raises(hlo.Unreadable):
      kernel_calls.flops(op)


@pytest.mark.parametrize('name', ['gmm', 'tgmm'])
def test_products_of_experts_are_priced_by_the_rows_of_balanced_ones(name):
  cost = '"custom_call_config":{"cost_estimate":{"bytes_accessed":"1","flops":"1200"}}'
  path = 'jit(train_step)/experts/shard_map/'
  assert kernel_calls.flops(kernel('x', f'{path}{balanced.label(8, 8)}/jit({name})/pallas_call', cost)) == 1200
  assert kernel_calls.flops(kernel('x', f'{path}{balanced.label(2, 8)}/jit({name})/pallas_call', cost)) == 300
  for op in (kernel('x', f'{path}jit({name}s)/pallas_call', cost), kernel('x', f'{path}jit({name})/pallas_call')):
    with pytest.raises(hlo.Unreadable):
      kernel_calls.flops(op)


@pytest.mark.parametrize('T, S, causal, pairs', [(2048, 2048, True, 10), (2048, 2048, False, 4), (8192, 8192, True, 36),
                                                 (512, 1024, True, 14), (114, 512, False, 1)])
def test_blocks_that_splash_visits(T, S, causal, pairs):
  from t5like.model.kernels import splash
  q, kv, found = splash.visits(T, S, splash.CAUSAL if causal else splash.Reach())
  rows, columns = (-(-n // 128) * 128 for n in (T, S))
  seen = np.arange(rows)[:, None] + columns - rows >= np.arange(columns) if causal else np.ones((rows, columns), bool)
  blocks = seen.reshape(rows // q, q, columns // kv, kv).any((1, 3))
  assert found == blocks.sum() == pairs


@pytest.mark.parametrize('T, S, reach, most', [
    (8192, 8192, (1023, 0), 0.25), (8192, 8192, (127, 0), 0.1), (8192, 8192, (64, 64), 0.1),
    (2048, 8192, (1023, 0), 0.2), (1000, 4000, (300, 200), 0.4), (640, 640, (640, 0), 1.0)])
def test_blocks_that_a_window_visits(T, S, reach, most):
  """Those that some query sees a key of, of the piece of the queries where they are most."""
  from t5like.model.kernels import splash
  q, kv, visited = splash.visits(T, S, splash.Reach(*reach))
  rows, columns = (-(-n // 128) * 128 for n in (T, S))
  largest = 0
  for first in range(0, columns - rows + 1, rows):
    distance = np.arange(first, first + rows)[:, None] - np.arange(columns)
    seen = (distance <= reach[0]) & (-distance <= reach[1])
    largest = max(largest, seen.reshape(rows // q, q, columns // kv, kv).any((1, 3)).sum())
  assert visited == largest <= most * (rows // q) * (columns // kv)


# --- Whole programs, of several compilers ---------------------------------------------------------


def program(name):
  return gzip.decompress((PROGRAMS / f'{name}.txt.gz').read_bytes()).decode()


# A decoder of 3 layers, 256 wide, 4 heads of 128 with 2 of keys, feed-forward 512, vocabulary 1,024, rows of 512, 4 a
# device, fsdp of 16 chips of v5e, remat=minimal; bodies of kernels and tables of source files are cut away.
L, D, N, K, H, F, V, T, B = 3, 256, 4, 2, 128, 512, 1024, 512, 4
SMALL = ('libtpu_0_0_50', 'libtpu_0_0_52', 'libtpu_0_0_50_unrolled')


@pytest.fixture(scope='module')
def small():
  topology = topologies.parse('v5e-16')
  return {name: predicted(program(name), topology) for name in SMALL}


def test_compilers_and_scans_agree_on_flops_and_bytes(small):
  first, *others = small.values()
  for other in others:
    assert other.counts['flops'] == first.counts['flops']
    assert other.counts['kernel_flops'] == first.counts['kernel_flops']
    assert other.counts['link_bytes'] == pytest.approx(first.counts['link_bytes'], rel=2e-3)
    assert other.seconds == pytest.approx(first.seconds, rel=0.1)


def test_flops_are_those_of_the_arithmetic(small):
  layer = D * H * (2 * N + 2 * K) + 3 * D * F
  products = 6 * B * T * (L * layer + D * V)
  block = 128  # a quarter of a row: 10 of 16 blocks
  kernels = 7 * 2 * B * L * N * H * block * block * 10
  for found in small.values():
    assert found.counts['kernel_flops'] == kernels
    # What remat=minimal computes again is no product but the first two of the feed-forward.
    again = 2 * B * T * L * 2 * D * F
    assert products <= found.counts['flops'] - kernels <= products + again


def test_bytes_over_links_are_those_of_gathers_and_reductions(small):
  weights = L * (D * H * (2 * N + 2 * K) + 3 * D * F) + 2 * D * V
  share, two_bytes = 15 / 16, 2
  # Forward and backward each gather all weights in bf16 but the table and the head, which are gathered once; all
  # gradients are reduced over all devices, whole: of an all-reduce each device sends twice the array.
  twice, once = weights - 2 * D * V, 2 * D * V
  gathered = (2 * twice + once) * share * two_bytes
  reduced = 2 * weights * share * two_bytes
  for found in small.values():
    assert found.counts['link_bytes'] == pytest.approx(gathered + reduced, rel=0.005)


@pytest.mark.parametrize('change, words', [
    (lambda text: re.sub(r'%[\w.-]+#0', '%gone#0', text, count=1), 'not among its instructions'),
    (lambda text: text.replace('#', '$'), 'not among its instructions'),
    (lambda text: text.replace('AsyncCollectiveStart', 'AsyncCollectiveBegin'), 'was not started'),
    (lambda text: re.sub(r'splash_causal_b4', 'splash_causal_x4', text), 'does not say which blocks'),
    (lambda text: text.replace('replica_groups', 'device_groups'), 'cannot be read')])
def test_a_program_with_one_thing_that_is_not_known_is_refused(change, words):
  with pytest.raises(hlo.Unreadable, match=words):
    predicted(change(program('libtpu_0_0_50')), topologies.parse('v5e-16'))


@pytest.mark.parametrize('dtype, generation, times', [
    ('bf16', 'v5e', 1), ('f32', 'v5e', 1), ('s8', 'v5e', 2), ('s8', 'v5p', 2), ('s8', 'v6e', 2), ('s8', 'v4', 1),
    ('f8e4m3fn', 'v6e', 1), ('f8e4m3fn', 'tpu7x', 2), ('s8', 'tpu7x', 1)])
def test_operands_of_8_bits_are_multiplied_at_the_published_rate(dtype, generation, times):
  of = topologies.GENERATIONS[generation]
  assert of.rate(dtype) == times * of.flops


def test_the_wider_operand_decides_how_fast_a_product_is():
  text = '''HloModule m, is_scheduled=true
ENTRY %main (a: s8[64,32], b: s8[32,16], c: bf16[32,16]) -> s32[64,16] {
  %a = s8[64,32]{1,0} parameter(0)
  %b = s8[32,16]{1,0} parameter(1)
  %c = bf16[32,16]{1,0} parameter(2)
  %both = s32[64,16]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
  %one = f32[64,16]{1,0} convolution(%a, %c), dim_labels=bf_io->bf
  ROOT %sum = s32[64,16]{1,0} convert(%both)
}
'''
  module = hlo.Module(text)
  products = [product for op in module.ops('main') for product in costs.Costs(module).products_of(op, 'main')]
  assert [(product.flops, product.dtype) for product in products] == [(2 * 64 * 32 * 16, 's8'),
                                                                      (2 * 64 * 32 * 16, 'bf16')]


# --- What must hold of a prediction ---------------------------------------------------------------


def of(seconds=1.0, flops=100e12, optimizer=0.0):
  return hlo_schedule.Prediction(seconds, {}, dict(flops=flops, optimizer_flops=optimizer), [])


def test_predictions_that_cannot_be_are_refused():
  work, peak = plausible.Work(model=110e12, least=100e12, most=130e12), 197e12
  plausible.check(of(), work, peak)
  plausible.check(of(flops=180e12, optimizer=60e12), work, peak)
  for wrong, words in ((of(flops=90e12), 'was not read'), (of(flops=140e12), 'remat'), (of(seconds=0.5), '93%'),
                       (of(flops=100e12, optimizer=20e12), 'was not read'), (of(seconds=0.0), 'no time'),
                       (of(seconds=math.nan), 'no time')):
    with pytest.raises(ConfigError, match=words):
      plausible.check(wrong, work, peak)


@pytest.mark.parametrize('remat, share', [('none', 1.0), ('weights', 4 / 3), ('minimal', 4 / 3), ('full', 4 / 3)])
def test_remat_explains_that_the_forward_pass_is_computed_again(remat, share):
  config = config_lib.load(f'{ROOT}/configs/bert.py:large', [f'model.remat={remat}'])
  facts = dict(flops_per_row=2.4e11, flops_per_row_untouched=2.4e11, attention_per_row=0.0, kernel=('xla', 'dropout'))
  devices = config.batch_size  # a row each
  found = plausible.work(config, facts, devices)
  logits = 2 * 30_522 * 1024 * 19
  assert found.most == pytest.approx(2.4e11 * share + logits)
  plausible.check(of(flops=2.4e11 * share), found, 197e12)
