"""Work on paper: what a small program does, counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import roofline

LOOP = """HloModule jit_f, is_scheduled=true

%fused_part (p0: f32[4,8,16], p1: s32[]) -> f32[8,16] {
  %p0 = f32[4,8,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %flat = f32[8,16]{1,0} bitcast(%cut)
}

%fused_put (q0: f32[4,8,16], q1: f32[1,8,16], q2: s32[]) -> f32[4,8,16] {
  %q0 = f32[4,8,16]{2,1,0} parameter(0)
  %q1 = f32[1,8,16]{2,1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %put = f32[4,8,16]{2,1,0} dynamic-update-slice(%q0, %q1, %q2, %zero.1, %zero.1)
}

%body (arg: (s32[], f32[4,8,16])) -> (s32[], f32[4,8,16]) {
  %arg = (s32[], f32[4,8,16]{2,1,0}) parameter(0)
  %number = s32[] get-tuple-element(%arg), index=0
  %stack = f32[4,8,16]{2,1,0} get-tuple-element(%arg), index=1
  %part = f32[8,16]{1,0} fusion(%stack, %number), calls=%fused_part, metadata={NAME}
  %weights = f32[16,16]{1,0} constant({...})
  %product = f32[8,16]{1,0} dot(%part, %weights), lhs_contracting_dims={1}
  %again = f32[1,8,16]{2,1,0} bitcast(%product)
  %kept = f32[4,8,16]{2,1,0} fusion(%stack, %again, %number), calls=%fused_put
  ROOT %out = (s32[], f32[4,8,16]{2,1,0}) tuple(%number, %kept)
}

%condition (arg.1: (s32[], f32[4,8,16])) -> pred[] {
  %arg.1 = (s32[], f32[4,8,16]{2,1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (first: s32[], second: f32[4,8,16]) -> (s32[], f32[4,8,16]) {
  %first = s32[] parameter(0)
  %second = f32[4,8,16]{2,1,0} parameter(1)
  %start = (s32[], f32[4,8,16]{2,1,0}) tuple(%first, %second)
  %gemm = (f32[8,8]{1,0}, s8[64]{0}) custom-call(%second, %second), GEMM
  ROOT %loop = (s32[], f32[4,8,16]{2,1,0}) while(%start), condition=%condition, body=%body TRIPS
}
"""
NAME = 'op_name="jit(f)/while/body/layers_3/slice"'
GEMM = (
    'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":'
    '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"]}}}'
)
LOOP = LOOP.replace("NAME", NAME).replace("GEMM", GEMM)
LAYER = 4 * 8 * 16
# A turn: a layer is read and written with its number, multiplied, and put back with its number.
TURN = (2 * LAYER + 4) + (2 * LAYER + 4 * 16 * 16) + (2 * LAYER + 4)


@pytest.mark.parametrize(("known", "turns"), [(True, 3), (False, 5)])
def test_loops_count_their_turns_and_parts_of_arrays_their_size(known, turns):
    trips = ', backend_config={"known_trip_count":{"n":"3"}}' if known else ""
    found = roofline.cost(LOOP.replace("TRIPS", trips), trips=5)
    library = 2 * 4 * LAYER + 4 * 8 * 8 + 64
    assert found.launches == 3 * turns + 1
    assert found.bytes == library + turns * TURN
    assert found.flops == 2 * 8 * 8 * 16 + turns * 2 * 8 * 16 * 16
    assert found.declared == 1
    assert found.moved["body/layers/slice"] == turns * (2 * LAYER + 4)


@pytest.mark.parametrize(("known", "asked"), [(True, 0), (False, 5)])
def test_the_condition_of_a_loop_runs_where_its_turns_are_not_known(known, asked):
    trips = ', backend_config={"known_trip_count":{"n":"5"}}' if known else ""
    condition = "ROOT %true = pred[] fusion(%arg.1), calls=%fused_part"
    text = LOOP.replace("TRIPS", trips).replace("ROOT %true = pred[] constant(true)", condition)
    assert roofline.cost(text, trips=5).launches == 3 * 5 + 1 + asked


def test_time_is_the_longer_of_bytes_and_products():
    found = roofline.cost(LOOP.replace("TRIPS", ""), trips=1)
    assert found.seconds == pytest.approx(found.bytes / roofline.BYTES_PER_SECOND)
    assert roofline.least_seconds(4.3e12, 0.0) == 1.0
    assert roofline.least_seconds(0.0, 2 * 790e12) == 2.0
    row = roofline.summary(LOOP.replace("TRIPS", ""), 1, ((4.3e6, 0.0), (0.0, 790e6)))
    assert row["least_seconds"] == pytest.approx(2e-6)
    assert row["share"] == pytest.approx(2e-6 / found.seconds)


def test_a_compiled_scan_is_counted_as_often_as_it_runs():
    def scanned(x, weights):
        return jax.lax.scan(lambda x, matrix: (x @ matrix, None), x, weights)[0]

    arguments = jnp.ones((4, 32)), jnp.ones((7, 32, 32))
    text = jax.jit(scanned).lower(*arguments).compile().as_text()
    found = roofline.cost(text)
    assert found.flops in (7 * 2 * 4 * 32 * 32, 0.0)  # a library's call on a CPU declares none
    assert found.bytes >= 7 * 4 * 32 * 32
