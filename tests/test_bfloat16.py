"""Products of bf16 matrices that are computed in float32."""

import pytest
import torch

from dpo_helpers.lm import bf16

EIGHT = 2.0**-8  # half a unit in the last place of bf16, relative


@pytest.fixture(scope="module", autouse=True)
def _in_float32():
    bf16.emulate_bf16_matmul()


def matrices(*shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_product_is_rounded_once(batch):
    """Against float64: of bf16 factors the exact sum, off by no more than its own rounding."""
    added, one, other = matrices((*batch, 40, 30), (*batch, 40, 200), (*batch, 200, 30))
    exact = one.double() @ other.double()
    plus = torch.baddbmm if batch else torch.addmm
    for found, true in (
        (one @ other, exact),
        (plus(added, one, other, beta=0.5, alpha=2.0), 0.5 * added.double() + 2 * exact),
    ):
        assert found.dtype == torch.bfloat16
        slack = 1e-4  # of a sum of 200 terms of about 1 in float32
        assert ((found - true).abs() <= EIGHT * true.abs() + slack).all()


def test_gradients_are_those_of_the_product():
    one, other, weight = matrices((40, 200), (200, 30), (40, 30))
    one.requires_grad_(), other.requires_grad_()
    (one @ other).backward(weight)
    for found, true in (
        (one.grad, weight.double() @ other.double().mT),
        (other.grad, one.double().mT @ weight.double()),
    ):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), true, rtol=EIGHT, atol=1e-4)


def test_under_autocast_a_layer_computes_in_bf16():
    """A layer of float32 weights: what comes out is the rounded product of rounded factors."""
    x, weight = matrices((40, 200), (30, 200), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.nn.functional.linear(x, weight)
    assert found.dtype == torch.bfloat16
    true = x.bfloat16().double() @ weight.bfloat16().double().mT
    torch.testing.assert_close(found.double(), true, rtol=EIGHT, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_other_products_stay_as_they_are(dtype):
    one, other = (10 * matrix for matrix in matrices((40, 200), (200, 30), dtype=torch.float64))
    one, other = one.to(dtype), other.to(dtype)
    true = (one[:, :, None].double() * other[None].double()).sum(1)
    found = one @ other
    assert found.dtype == dtype
    rounding = 0 if dtype == torch.int64 else 400 * torch.finfo(dtype).eps
    size = (one[:, :, None].double() * other[None].double()).abs().sum(1)
    assert ((found - true).abs() <= rounding * size).all()
