"""The GPU kernels without a GPU: Inductor's code counted, interpreted against the formula, and compiled."""


import pytest
import torch
import torch.nn.functional as F

from torchqx.inductor_kernels.hadamard.aten import (
    hadamard_aten,
    hadamard_quantize_per_token_aten,
    hadamard_quantize_static_aten,
)
from torchqx.inductor_kernels.hadamard.naive import hadamard_naive
from torchqx.rotations import Hadamard, choose
from torchqx.testing import ARCHITECTURES, lower_for_gpu

ops = torch.ops.torchqx
MOST_SPILLS = 32  # bytes per thread: float32 in three parts sits at the limit, and AMD counts scalars kept in lanes
FACTOR = "torch.ops.torchqx.hadamard_factor.default"


def exact(x, signs, block, transpose):
    formula = hadamard_naive if block < 2000 else hadamard_aten  # the whole matrix would take gigabytes
    return formula(x.double(), signs, block, transpose)


def assert_rounded(y, expected, dtype):
    """Within what rounding the exact result to the dtype may cost, and float32's own sums."""
    assert y.dtype == dtype
    bound = (torch.finfo(dtype).eps / 2 + 8e-6) * expected.abs().max()
    assert (y.double() - expected).abs().max() <= bound


def assert_same_codes(codes, expected):
    """Equal, but where a value is so near the middle of two codes that the sums' order decides."""
    assert codes.dtype == expected.dtype
    difference = (codes.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert difference.sum() <= 0.002 * codes.numel() + codes[..., 0].numel()


@pytest.mark.parametrize(("k", "rows", "dtype"), [
    (12, 100, torch.bfloat16), (100, 63, torch.float32), (576, 63, torch.bfloat16), (768, 1, torch.float16),
    (1536, 5, torch.float32), (4096, 3, torch.bfloat16), (11008, 1, torch.float32), (28672, 1, torch.bfloat16),
    (63, 7, torch.float32), (96, 5, torch.bfloat16), (128, 33, torch.float32),
])
def test_product(k, rows, dtype):
    rotation = choose(k, seed=k)
    x, signs = torch.randn(rows, k).to(dtype), rotation.signs(k)
    program = lower_for_gpu(lambda x, s: ops.hadamard(x, s, rotation.block, False), (x, signs))
    assert program.launched == ["template"]
    assert_rounded(program.run(x, signs), exact(x, signs, rotation.block, False), dtype)


def test_transposed_blocks():
    """Several blocks to a row, and a base that is not symmetric."""
    rotation = Hadamard(48, seed=1)
    x, signs = torch.randn(9, 144), rotation.signs(144)
    program = lower_for_gpu(lambda x, s: ops.hadamard(x, s, 48, True), (x, signs))
    assert program.launched == ["template"]
    assert program.extern_calls == (FACTOR,)
    assert_rounded(program.run(x, signs), exact(x, signs, 48, True), torch.float32)


@pytest.mark.parametrize("make", [
    lambda: torch.randn(5, 300)[:, 100:],
    lambda: torch.randn(7, 3, 200).transpose(0, 1),
    lambda: torch.randn(200, 9).T,
])
def test_strided_rows_and_leading_dimensions(make):
    x = make()
    program = lower_for_gpu(lambda x: ops.hadamard(x, None, 40, False), (x,))
    assert program.launched == ["template"]
    y = program.run(x)
    assert y.shape == x.shape
    assert_rounded(y, exact(x, None, 40, False), torch.float32)


@pytest.mark.parametrize(("k", "dtype", "codes"), [(576, torch.float32, (-128, 127)), (1024, torch.bfloat16, (0, 255))])
def test_gated_product_before_and_static_quantization_after_are_one_kernel(k, dtype, codes):
    block, signs = choose(k).block, Hadamard(1, seed=3).signs(k)
    gate, up = torch.randn(2, 31, k).to(dtype)
    mul, add = torch.rand(k) * 20 + 10, torch.randn(k) * 5
    program = lower_for_gpu(
        lambda g, u, *rest: ops.hadamard_quantize_static(F.silu(g) * u, rest[0], block, *rest[1:], *codes),
        (gate, up, signs, mul, add))
    assert program.launched == ["template"]
    x = (F.silu(gate.float()) * up.float()).to(dtype)  # fused, what is between is not rounded
    assert_same_codes(program.run(gate, up, signs, mul, add),
                      hadamard_quantize_static_aten(x, signs, block, mul, add, *codes))


@pytest.mark.parametrize(("symmetric", "qmin", "moved"), [(False, -128, True), (True, -128, False), (False, 0, False)])
@pytest.mark.parametrize("k", [100, 576])
def test_quantization_per_token_is_in_the_kernel(k, symmetric, qmin, moved):
    rotation = choose(k, seed=2)
    gate, up = torch.randn(2, 5, 3, k)
    smooth, shift = (torch.rand(k) + 0.5, torch.randn(k)) if moved else (None, None)

    def rotated(g, u, signs, smooth, shift):
        return ops.hadamard_quantize_per_token(F.silu(g) * u, signs, rotation.block, smooth, shift, qmin, qmin + 255,
                                               symmetric)

    args = (gate, up, rotation.signs(k), smooth, shift)
    program = lower_for_gpu(rotated, args)
    assert program.launched == ["template"]
    codes, scale, zero = program.run(*args)
    expected = hadamard_quantize_per_token_aten(F.silu(gate) * up, rotation.signs(k), rotation.block, smooth, shift,
                                                qmin, qmin + 255, symmetric)
    assert_same_codes(codes, expected[0])
    torch.testing.assert_close(scale, expected[1], rtol=1e-5, atol=0)
    assert torch.equal(zero, expected[2])


def test_ranges_over_several_blocks_are_a_second_kernel():
    x = torch.randn(6, 96)
    program = lower_for_gpu(lambda x: ops.hadamard_quantize_per_token(x, None, 48, None, None, 0, 255, False), (x,))
    assert program.launched == ["template", "persistent_reduction"]
    assert_same_codes(program.run(x)[0], hadamard_quantize_per_token_aten(x, None, 48, None, None, 0, 255, False)[0])


def test_a_norm_stays_a_kernel_of_its_own():
    """It reduces rows, and what stands before a template may not."""
    x, weight, one = torch.randn(6, 64), torch.rand(64), torch.ones(1)
    program = lower_for_gpu(
        lambda x, w, one: ops.hadamard_quantize_static(F.rms_norm(x, (64,), w), None, 64, one * 30, one, -128, 127),
        (x, weight, one))
    assert program.launched == ["persistent_reduction", "template"]


def test_rotations_of_one_size_share_their_factor():
    x = torch.randn(4, 48)
    program = lower_for_gpu(lambda x: ops.hadamard(F.relu(ops.hadamard(x, None, 48, False)), None, 48, True), (x,))
    assert program.launched == ["template", "template"]
    assert program.extern_calls == (FACTOR,)
    once = hadamard_aten(x, None, 48, False).relu()
    torch.testing.assert_close(program.run(x), hadamard_aten(once, None, 48, True), rtol=1e-5, atol=1e-5)


def test_where_no_program_holds_a_block_the_operator_is_called():
    program = lower_for_gpu(lambda x: ops.hadamard(x, None, 1000, False), (torch.randn(2, 1000),))
    assert program.extern_calls == ("torch.ops.torchqx.hadamard.default",)


def test_clipped_ranges():
    x = torch.randn(7, 48)
    for block, launched in ((48, ["template"]), (24, ["template", "persistent_reduction"])):
        args = (x, None, block, None, None, 0, 15, False, 0.7)
        program = lower_for_gpu(lambda x, rest=args[1:]: ops.hadamard_quantize_per_token(x, *rest), (x,))
        assert program.launched == launched
        codes, scale, zero = program.run(x)
        expected = hadamard_quantize_per_token_aten(*args)
        assert_same_codes(codes, expected[0])
        torch.testing.assert_close(scale, expected[1], rtol=1e-5, atol=0)
        assert torch.equal(zero, expected[2])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills(arch):
    """Gated before, quantized per token after: what takes the most registers, at widths of each kind of tile."""
    programs = []
    for rows, k, dtype in ((15, 64, torch.float32), (2048, 128, torch.float32), (1, 1536, torch.float32),
                           (64, 4096, torch.float32), (64, 11008, torch.bfloat16), (64, 14336, torch.bfloat16)):
        block = choose(k).block
        x = torch.randn(rows, k).to(dtype)
        programs.append(lower_for_gpu(
            lambda g, u, b=block: ops.hadamard_quantize_per_token(F.silu(g) * u, None, b, None, None, -128, 127, False),
            (x, x), arch))
        programs[-1].start_compiling()
    for program in programs:
        (report,) = program.compile().values()
        assert report[0].spills <= MOST_SPILLS
        assert report[0].shared <= ARCHITECTURES[arch].shared
        assert set(report[0].matrix_instructions) & {"HMMA", "HGMMA", "mfma"}
