"""Names of TPU slices, and times read from schedules."""
import pytest

from t5like import hlo, preflight, schedule, tpu
from t5like.errors import ConfigError


@pytest.mark.parametrize('name, shape, slices, devices, chips, wrap', [
    ('v5e-256', (16, 16), 1, 256, 256, [True, True, False]), ('v5e-64', (8, 8), 1, 64, 64, [False, False, False]),
    ('v5litepod-8', (2, 4), 1, 8, 8, [False] * 3), ('2xv5e-256', (16, 16), 2, 512, 512, [True, True, False]),
    ('v5p-128', (4, 4, 4), 1, 64, 64, [True] * 3), ('v5p:4x4x8', (4, 4, 8), 1, 128, 128, [True] * 3),
    ('v4-16', (2, 2, 2), 1, 8, 8, [False] * 3), ('v6e-256', (16, 16), 1, 256, 256, [True, True, False]),
    ('7x-128', (4, 4, 4), 1, 128, 64, [True] * 3)])
def test_topologies(name, shape, slices, devices, chips, wrap):
  t = tpu.parse(name)
  assert (t.shape, t.slices, t.devices, t.chips, t.wrap) == (shape, slices, devices, chips, wrap)
  assert tpu.parse(t.name) == t


@pytest.mark.parametrize('name, words', [
    ('v9-8', "no TPU generation 'v9'"), ('v5e-7', 'one of 1, 4, 8, 16'), ('v5e:512x16', 'at most 256'),
    ('v5p:4x4', '3 dimensions, such as v5p:4x4x4'), ('pod', 'such as v5e-256'), ('v5p-7', 'no slice of v5p')])
def test_topologies_that_do_not_exist(name, words):
  with pytest.raises(ConfigError, match=words):
    tpu.parse(name)


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


def test_a_schedule_by_hand():
  g = tpu.GENERATIONS['v5e']
  seconds, times, waits, flops = schedule.Schedule(MODULE, tpu.parse('v5e-256')).predict()
  assert flops == 5 * 2 * 1024 * 512 * 256
  size = lambda *dims: 2 * dims[0] * dims[1]
  memory = (size(1024, 512) + size(512, 256) + size(1024, 256)) / g.bandwidth
  product = max(2 * 1024 * 512 * 256 / g.flops / schedule.MXU, memory)
  gather = (size(2, 256) + size(512, 256)) * 255 / 256 / (g.link * 2 * 2) + 2 * schedule.LATENCY
  reduce = 2 * size(1024, 256) * 0.5 / (g.link * 2) + schedule.LATENCY
  after_product = max(product, size(512, 256) / g.bandwidth, gather)
  assert seconds == pytest.approx(5 * (after_product + reduce))
  assert times['exposed'] == pytest.approx(5 * (after_product - max(product, size(512, 256) / g.bandwidth) + reduce))
  assert waits[0][1] == 'reduced' and 'layer' in waits[0][2] and waits[0][2].endswith('x 5')


def test_texts_of_types_and_groups():
  (a, b, c) = hlo.arrays('(bf16[4,2048]{1,0:T(8,128)(2,1)S(1)}, f32[8]{0}, pred[])')
  assert a == hlo.Array((4, 2048), 16384, False) and b == hlo.Array((8,), 32, True) and c.bytes == 1
  assert hlo.group_size('replica_groups={{0,1,2},{3,4,5}}') == 3
  assert hlo.group_size('replica_groups=[2,128]<=[256]') == 128
  assert hlo.group_size("replica_groups=mesh['a'=2,'b'=64] {'b'}") == 64
  assert hlo.group_size('to_apply=%add') == 0


def test_kernels_count_what_masks_leave():
  from configs.yardstick_1b import get_config
  op = lambda name: hlo.Op(name, '', 'custom-call', [], '', False)
  of = lambda *shapes: [hlo.Array(shape, 0, True) for shape in shapes]
  operands = of((1, 4), (4, 16, 2048, 128), (4, 8, 2048, 128), (4, 8, 2048, 128))
  whole = 4 * 4 * 16 * 2048 * 2048 * 128
  assert preflight.kernel_flops(get_config(), op('splash_mha_fwd'), operands) == whole / 2
  assert preflight.kernel_flops(get_config(), op('splash_mha_dkv'), operands) == whole / 2 * 2.5
  assert preflight.kernel_flops(get_config(), op('jvp_relative_bias_causal_forward_.1'), operands) == whole / 2
  assert preflight.kernel_flops(get_config(), op('relative_bias_forward.2'), operands) == whole
  assert preflight.kernel_flops(get_config(), op('transpose_jvp_relative_bias_backward__'), operands) == whole * 2.5
  assert preflight.kernel_flops(get_config(), op('other'), operands[:1]) == 0


def test_the_front_of_a_search_is_not_beaten():
  report = lambda seconds, used: dict(step_seconds=seconds, hbm=dict(used=used))
  found = [(k, report(*x)) for k, x in enumerate([(1, 9), (2, 10), (3, 5), (4, 6), (5, 1)])]
  assert [k for k, _ in preflight.front(found)] == [0, 2, 4]
