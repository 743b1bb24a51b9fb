"""Facts about GPTQ: what it loses, what it leaves alone, and how it meets bad statistics."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import qconv_gptq
from qconv.errors import Unsupported, UnsupportedGrid, UsageError
from qconv.grids import BlockGrid, CodebookGrid, FloatGrid, SuperBlockGrid, UniformGrid
from qconv.plugin import API_VERSION
from qconv.statistics import Statistics, StatisticsSum
from qconv.testing import check_plugin, check_rounder
from qconv_gptq import _hessian
from qconv_gptq._gptq import Gptq
from qconv_gptq._hessian import factor, rounding_order

GPU = torch.device("cuda", 0)
INT4 = UniformGrid(bits=4, symmetric=True, group_size=64)
GRIDS = [
    INT4,
    UniformGrid(bits=4, symmetric=False, group_size=64),
    UniformGrid(bits=3, symmetric=True, group_size=32, narrow=True, scale_dtype="bfloat16"),
    UniformGrid(bits=8, symmetric=True, group_size="channel"),
    UniformGrid(bits=4, symmetric=False, group_size="channel", scale_dtype="float32"),
    UniformGrid(bits=8, symmetric=True, group_size="tensor"),
    *(BlockGrid(type=each) for each in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")),
    *(SuperBlockGrid(type=each) for each in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")),
    SuperBlockGrid(type="q4_k", search="ggml"),
    CodebookGrid(codebook="nf4"),
    CodebookGrid(codebook="fp4", double_quant=True),
    FloatGrid(scope="tensor"),
    FloatGrid(scope="channel", search="search", scale_dtype="bfloat16"),
    FloatGrid(scope="block", block=(16, 128)),
    FloatGrid(scope="block", block=(16, 100)),
]


def name_of(grid) -> str:
    return f"{grid.name}_{grid.search}"


def weight(rows: int = 40, columns: int = 256) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * 0.1


def inputs(columns: int = 256, rows: int = 700) -> torch.Tensor:
    """Correlated, of very different energy."""
    generator = torch.Generator().manual_seed(columns)
    common = torch.randn(rows, 12, generator=generator)
    x = common @ torch.randn(12, columns, generator=generator)
    x += torch.randn(rows, columns, generator=generator)
    return x * torch.exp(torch.randn(columns, generator=generator))


def counted(x: torch.Tensor) -> Statistics:
    total = StatisticsSum(x.shape[1])
    total.add(x)
    return total.total()


def loss(values: torch.Tensor, w: torch.Tensor, statistics: Statistics) -> float:
    E = (values - w).double()
    return float(((E @ statistics.gram.double()) * E).sum())


def plain(grid, w: torch.Tensor, statistics: Statistics) -> torch.Tensor:
    return grid.decode(*grid.quantize(w, statistics.importance))


def test_it_conforms():
    check_plugin(qconv_gptq)
    check_rounder(Gptq, GRIDS)
    (spec,) = qconv_gptq.qconv_methods()
    assert (spec.name, spec.kind, spec.calibration) == ("gptq", "rounder", "needed")
    assert (spec.streams, spec.api_version) == (False, API_VERSION)
    assert {option.name for option in spec.options} == {"damp", "order", "refits"}


@pytest.mark.parametrize("order", ["activation", "none"])
@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_it_loses_less_than_rounding_to_nearest(grid, order):
    w, statistics = weight(), counted(inputs())
    tensor = Gptq(order=order).quantize(w, grid, statistics)
    assert loss(tensor.dequantize(), w, statistics) < loss(
        plain(grid, w, statistics), w, statistics
    )


@pytest.mark.parametrize("seed", range(8))
def test_it_loses_less_whatever_the_correlation(seed):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(24, 128, generator=generator)
    mixing = torch.randn(128, 128, generator=generator) * torch.rand(128, generator=generator) ** 4
    statistics = counted(torch.randn(300, 128, generator=generator) @ mixing)
    tensor = Gptq().quantize(w, INT4, statistics)
    assert loss(tensor.dequantize(), w, statistics) < loss(
        plain(INT4, w, statistics), w, statistics
    )


def textbook(w: torch.Tensor, H: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """GPTQ as its paper has it: the inverse's Cholesky factor, one column after another."""
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    w, out = w.double().clone(), torch.empty_like(w, dtype=torch.float64)
    for i in range(w.shape[1]):
        out[:, i] = (w[:, i] / scale).round().clamp(-128, 127) * scale
        error = (w[:, i] - out[:, i]) / U[i, i]
        w[:, i:] -= error[:, None] * U[i, i:]
    return out.float()


@pytest.mark.parametrize("columns", [24, 160])
def test_it_is_the_papers_gptq_where_the_scales_are_given(columns):
    grid = UniformGrid(bits=8, symmetric=True, group_size="channel", scale_dtype="float32")
    w, statistics = weight(columns=columns), counted(inputs(columns))
    tensor = Gptq(order="none", damp="0.05").quantize(w, grid, statistics)
    H = statistics.gram.double()
    energy = H.diagonal().clone()
    H.diagonal().add_(0.05 * energy + 0.0005 * energy.mean())
    expected = textbook(w, H, tensor.parameters["scale"][:, 0].double())
    assert torch.allclose(tensor.dequantize(), expected, atol=1e-6)


def test_codes_decode_to_what_the_feedback_used():
    w, statistics = weight(columns=512), counted(inputs(512))
    grid = SuperBlockGrid(type="q4_k")
    one = Gptq().quantize(w, grid, statistics)
    # Moving one code of the first super-block must change what later ones were rounded from.
    hessian = factor(statistics.gram, torch.arange(512), 1.0)
    none = Gptq(order="none").quantize(w, grid, statistics)
    E = none.dequantize() - w
    target = w[:, 256:] - E[:, :256] @ hessian.upper[:256, 256:]
    parameters = grid.fit(target, statistics.gram.diagonal()[256:].contiguous())
    assert torch.equal(none.parameters["sub_scales"][:, 1:], parameters["sub_scales"])
    assert not torch.equal(one.codes, none.codes)


def test_refits_lose_less_on_the_whole():
    w, statistics = weight(), counted(inputs())
    ratios = []
    for grid in (INT4, GRIDS[1], SuperBlockGrid(type="q3_k"), GRIDS[3], GRIDS[4], GRIDS[5]):
        once, often = (
            loss(Gptq(refits=refits).quantize(w, grid, statistics).dequantize(), w, statistics)
            for refits in ("0", "2")
        )
        ratios.append(often / once)
    assert max(ratios) < 1.05
    assert sum(ratios) < len(ratios)


def test_columns_of_a_fit_stay_together_strongest_first():
    energy = torch.tensor([1.0, 4.0, 2.0, 3.0, 0.0, 9.0])
    assert rounding_order(energy, 2, by_activation=True).tolist() == [5, 4, 1, 0, 3, 2]
    assert rounding_order(energy, 6, by_activation=True).tolist() == [5, 1, 3, 2, 0, 4]
    assert rounding_order(energy, 2, by_activation=False).tolist() == list(range(6))


def test_dead_columns_are_rounded_as_they_are():
    x = inputs()
    x[:, [3, 70, 255]] = 0.0
    w, statistics = weight(), counted(x)
    tensor = Gptq().quantize(w, INT4, statistics)
    dead = [3, 70, 255]
    assert torch.equal(tensor.codes[:, dead], INT4.round(w, tensor.parameters)[:, dead])


def test_more_columns_than_tokens_is_no_trouble():
    w, statistics = weight(), counted(inputs(rows=20))
    values = Gptq().quantize(w, INT4, statistics).dequantize()
    assert loss(values, w, statistics) < 0.5 * loss(plain(INT4, w, statistics), w, statistics)


def test_damping_is_raised_where_the_matrix_is_singular_and_reported(caplog):
    w, statistics = weight(), counted(inputs(rows=20))
    with caplog.at_level(logging.WARNING, logger="qconv"):
        Gptq(damp="0").quantize(w, INT4, statistics)
    (record,) = caplog.records
    assert "256 inputs is not positive definite with damp=0; raised to" in record.getMessage()
    hessian = factor(statistics.gram, torch.arange(256), 0.0)
    assert 0 < hessian.damp <= 1e-3


def test_damping_that_suffices_is_kept_and_not_reported(caplog):
    with caplog.at_level(logging.DEBUG, logger="qconv"):
        hessian = factor(counted(inputs()).gram, torch.arange(256), 0.1)
    assert hessian.damp == 0.1
    assert not caplog.records


def test_the_factor_gives_the_damped_matrix_back():
    gram = counted(inputs()).gram
    order = rounding_order(gram.diagonal(), 64, by_activation=True)
    hessian = factor(gram, order, 0.1)
    energy = gram.diagonal().double()
    H = gram.double() + torch.diag(0.1 * energy + 0.001 * energy.mean())
    back = (hessian.upper.double() * hessian.d.double()) @ hessian.upper.double().t()
    assert torch.allclose(back, H[order][:, order], rtol=1e-5, atol=1e-5)
    assert torch.equal(hessian.energy, gram.diagonal()[order])
    assert torch.equal(hessian.upper, hessian.upper.triu())


def test_what_is_no_gram_matrix_is_refused():
    gram = torch.eye(64) - 4.0
    gram.diagonal().fill_(1.0)
    with pytest.raises(Unsupported, match=r"64 inputs is not positive definite with damp up to 1,"):
        factor(gram, torch.arange(64), 0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(value):
    statistics = counted(inputs(64))
    statistics.gram_sum[5, 7] = value
    with pytest.raises(Unsupported, match=r"holds (nan|inf) in row 5, column 7; it must be finite"):
        Gptq().quantize(weight(columns=64), INT4, statistics)


def test_statistics_of_another_input_are_refused():
    with pytest.raises(Unsupported, match="has 128 columns, but its statistics are of 64 inputs"):
        Gptq().quantize(weight(columns=128), INT4, counted(inputs(64)))


def test_a_diagonal_alone_is_refused():
    with pytest.raises(Unsupported, match="diagonal of the Gram matrix only"):
        Gptq().quantize(weight(columns=64), INT4, counted(inputs(64)).without_gram())


def test_columns_that_do_not_fit_the_grid_are_refused():
    with pytest.raises(UnsupportedGrid, match="100 columns are not a multiple of group size 64"):
        Gptq().quantize(weight(columns=100), INT4, counted(inputs(100)))


def test_a_scale_beyond_float16_is_refused_as_by_the_grid():
    with pytest.raises(UnsupportedGrid, match="needs scale .* but float16 ends at"):
        Gptq().quantize(weight() * 1e8, INT4, counted(inputs()))


@pytest.mark.parametrize("known", [False, True])
def test_without_knowledge_it_rounds_as_the_grid_does(known):
    statistics = counted(torch.zeros(5, 256)) if known else None
    tensor = Gptq().quantize(weight(), INT4, statistics)
    assert torch.equal(tensor.codes, INT4.quantize(weight())[0])


def test_same_bytes_again_and_on_any_number_of_threads():
    w, statistics = weight(512, 768), counted(inputs(768))
    before = torch.get_num_threads()
    try:
        for grid in (INT4, SuperBlockGrid(type="q4_k"), GRIDS[3]):
            torch.set_num_threads(1)
            one = Gptq().quantize(w, grid, statistics)
            assert Gptq().quantize(w, grid, statistics).same(one)
            torch.set_num_threads(2)
            assert Gptq().quantize(w, grid, statistics).same(one)
    finally:
        torch.set_num_threads(before)


def test_it_takes_a_weight_of_any_memory_layout():
    w, statistics = weight(256, 256), counted(inputs())
    other = w.t().contiguous().t().requires_grad_()
    assert Gptq().quantize(other, INT4, statistics).same(Gptq().quantize(w, INT4, statistics))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damb": "0.1"}, r"no option is called 'damb'; choose damp, order, refits"),
        ({"damp": "200"}, r"damp is '200'; choose a number from 0 to 100"),
        ({"damp": "nan"}, r"damp is 'nan'; choose a number from 0 to 100"),
        ({"damp": "much"}, r"damp is 'much'; choose a number from 0 to 100"),
        ({"order": "desc"}, r"order is 'desc'; choose activation or none"),
        ({"refits": "-1"}, r"refits is '-1'; choose a whole number from 0 to 8"),
        ({"refits": "9"}, r"refits is '9'; choose a whole number from 0 to 8"),
    ],
)
def test_options_that_do_not_do_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Gptq(**options)


def test_inputs_stay_as_they_were():
    w, statistics = weight(), counted(inputs())
    kept, known = w.clone(), replace(statistics, gram_sum=statistics.gram_sum.clone())
    Gptq(refits="1").quantize(w, INT4, statistics)
    assert torch.equal(w, kept)
    assert statistics.same(known)


def test_listing_it_imports_no_torch():
    code = (
        "import sys, qconv_gptq; list(qconv_gptq.qconv_methods()); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_that_factor_on_a_gpu_let_torch_load_its_library_in_one_of_them(monkeypatch):
    seen: list[int] = []
    within = threading.Semaphore(1)

    def factored(matrix):
        if not seen:
            assert within.acquire(blocking=False), "two threads load at once"
            time.sleep(0.05)
            within.release()
        seen.append(len(matrix))
        return matrix, torch.tensor(0)

    monkeypatch.setattr(_hessian, "_loaded", set())
    monkeypatch.setattr(torch.linalg, "cholesky_ex", factored)
    monkeypatch.setattr(torch, "eye", lambda size, **_: torch.zeros(size, size))
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(_hessian._load_linear_algebra, GPU) for _ in range(32)]:
            done.result()
    assert seen == [1]


def test_on_the_cpu_nothing_is_loaded_beforehand(monkeypatch):
    monkeypatch.setattr(torch.linalg, "cholesky_ex", None)
    _hessian._load_linear_algebra(torch.device("cpu"))


def test_factoring_loads_the_library_first(monkeypatch):
    asked = []
    monkeypatch.setattr(_hessian, "_load_linear_algebra", asked.append)
    factor(torch.eye(4), torch.arange(4), 0.01)
    assert asked == [torch.device("cpu")]
