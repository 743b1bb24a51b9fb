"""Tensors that lie otherwise in the source than in the artifact."""

from __future__ import annotations

import pytest
import torch

import qconv.conversion._arranged as arranged
from qconv.conversion._slabs import make_jobs, read_slab
from qconv.errors import BrokenPlugin
from qconv.planning import arranged_shape
from qconv.planning._borders import check_plans
from qconv.plugin import ModelInfo, TensorInfo, TensorPlan, TensorPlans


def _model(*shape: int) -> ModelInfo:
    info = TensorInfo(name="w", shape=shape, dtype="F32", nbytes=4 * torch.Size(shape).numel())
    return ModelInfo(kind="onnx", name="m", config={}, tensors={"w": info}, files={}, metadata={})


def _plan(shape: tuple[int, ...], arrangement: str, **more) -> TensorPlan:
    return TensorPlan(
        name="w",
        sources=("w",),
        shape=shape,
        action="cast",
        storage="F32",
        dtype=more.pop("dtype", "float32"),
        reason="a test",
        arrangement=arrangement,
        **more,
    )


class _Target:
    def __init__(self, plan: TensorPlan) -> None:
        self.tensors = TensorPlans(tensors=(plan,))


def _read(values: torch.Tensor):
    def read(name: str, start: int, stop: int) -> torch.Tensor:
        assert name == "w"
        return values.reshape(-1, values.shape[-1])[start:stop].clone()

    return read


@pytest.mark.parametrize("piece", [1, 7, 40, 1 << 20])
@pytest.mark.parametrize(("start", "stop"), [(0, 8), (3, 5), (7, 8)])
def test_rows_of_a_transposed_tensor_are_columns_of_its_source(monkeypatch, piece, start, stop):
    monkeypatch.setattr(arranged, "_PIECE", piece)
    values = torch.randn(5, 8)
    (job,) = make_jobs(_model(5, 8), [_Target(_plan((8, 5), "transposed"))])
    assert (job.rows, job.columns, job.sources) == (8, 5, (("w", 8),))
    assert torch.equal(read_slab(job, start, stop, _read(values)), values.t()[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (2, 3), (5, 6)])
def test_a_flat_tensor_has_its_first_dimension_as_rows(start, stop):
    values = torch.randn(6, 4, 3, 3)
    (job,) = make_jobs(_model(6, 4, 3, 3), [_Target(_plan((6, 36), "flat"))])
    assert torch.equal(
        read_slab(job, start, stop, _read(values)), values.reshape(6, -1)[start:stop]
    )


def test_the_same_source_arranged_otherwise_is_another_job():
    targets = [_Target(_plan((4, 4), "rows")), _Target(_plan((4, 4), "transposed"))]
    assert len(make_jobs(_model(4, 4), targets)) == 2
    alike = [_Target(_plan((4, 4), "transposed")), _Target(_plan((4, 4), "transposed"))]
    assert len(make_jobs(_model(4, 4), alike)) == 1


def test_arranged_shapes():
    assert arranged_shape((5, 8), "rows") == (5, 8)
    assert arranged_shape((5, 8), "transposed") == (8, 5)
    assert arranged_shape((6, 4, 3, 3), "rows") == (72, 3)
    assert arranged_shape((6, 4, 3, 3), "flat") == (6, 36)
    assert arranged_shape((), "flat") == (1, 1)


def test_a_plan_of_a_shape_that_the_arrangement_does_not_give_is_the_plugins_fault():
    plans = TensorPlans(tensors=(_plan((5, 8), "transposed"),))
    with pytest.raises(BrokenPlugin, match="plugin author: onnx:x tensor 'w' has 8 columns"):
        check_plans("onnx:x", _model(5, 8), plans)


def test_bytes_are_not_copied_in_another_arrangement():
    plans = TensorPlans(tensors=(_plan((8, 5), "transposed", dtype="raw"),))
    with pytest.raises(BrokenPlugin, match="is transposed, so it must have one source"):
        check_plans("onnx:x", _model(5, 8), plans)
