"""The plan accounts for every tensor and byte, and refuses what does not add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch

from qconv.errors import (
    BrokenPlugin,
    GateFailed,
    NotEnoughResources,
    UnreadableInput,
    Unsupported,
    UnusedTensors,
)
from qconv.planning import Plan, build_plan, check_disk, check_fallbacks
from qconv.plugin import Layout, Place, RowOrder, TensorPlans
from toy import MemoryCheckpoint, ToyBackend, reversed_rows

SCHEMAS = Path(__file__).parents[2] / "schemas"


def two_tensors() -> MemoryCheckpoint:
    return MemoryCheckpoint({"a": torch.ones(4, 8), "b": torch.ones(3)})


def plan_for(checkpoint: MemoryCheckpoint, *backends: ToyBackend, **options) -> Plan:
    return build_plan(
        source=Path("toy"),
        out=options.pop("out", Path()),
        model=checkpoint.model,
        method="rtn",
        streams=True,
        targets=[
            (f"toy:{number}", backend, "plain", {}) for number, backend in enumerate(backends)
        ],
        allow_unused=options.pop("allow_unused", False),
        threads=options.pop("threads", 1),
        max_ram=options.pop("max_ram", None),
        warnings=(),
    )


def test_sizes_are_exact_to_the_byte():
    plan = plan_for(two_tensors(), ToyBackend())
    assert plan.targets[0].nbytes == 8 + 4 * 8 * 4 + 3 * 4
    assert plan.needs.disk_nbytes == plan.targets[0].nbytes
    assert plan.targets[0].weights == 35
    assert plan.targets[0].bits_per_weight == 32


def test_every_source_tensor_is_in_the_json():
    target = plan_for(two_tensors(), ToyBackend(drops=["b"])).to_json()["targets"][0]
    assert [(row["sources"], row["action"]) for row in target["tensors"]] == [
        (["a"], "cast"),
        (["b"], "drop"),
    ]
    assert target["tensors"][1]["reason"] == "toys need no such thing"


def test_a_tensor_without_a_place_is_an_error():
    with pytest.raises(UnusedTensors, match="1 source tensors have no place.*'b'.*--allow-unused"):
        plan_for(two_tensors(), ToyBackend(skips=["b"]))


def test_allowed_unused_tensors_are_listed_and_warned_about():
    plan = plan_for(two_tensors(), ToyBackend(skips=["b"]), allow_unused=True)
    assert plan.targets[0].left_out() == (("b", "no place in this format; left out as allowed"),)
    assert any(
        "1 source tensors left out (--allow-unused): 'b'" in warning for warning in plan.warnings
    )


def test_an_empty_model_is_an_error():
    with pytest.raises(UnreadableInput, match="holds no tensors"):
        plan_for(MemoryCheckpoint({}), ToyBackend())


FALLBACK = {"a": {"fallback_from": "Q4_K", "storage": "Q5_0"}}


def test_fallback_share_counts_values():
    target = plan_for(two_tensors(), ToyBackend(changes=FALLBACK)).targets[0]
    assert target.fallback_share == pytest.approx(32 / 35)
    assert [plan.name for plan in target.fallbacks] == ["a"]


def test_fallbacks_are_warned_about():
    plan = plan_for(two_tensors(), ToyBackend(changes=FALLBACK))
    assert any("91.4% of the weights fall back" in warning for warning in plan.warnings)


def test_too_many_fallbacks_fail_the_gate():
    plan = plan_for(two_tensors(), ToyBackend(changes=FALLBACK))
    check_fallbacks(plan, None)
    check_fallbacks(plan, 0.95)
    with pytest.raises(
        GateFailed, match=r"91.4% .* more than the 5.0% allowed: a \(Q4_K to Q5_0\)"
    ):
        check_fallbacks(plan, 0.05)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sources": ("nobody",)}, "names source tensor 'nobody'"),
        ({"name": "b"}, "writes 'b' twice"),
        ({"dtype": None}, "needs a grid or a dtype"),
        ({"values": (1.0,)}, "needs sources or values"),
        ({"shape": (4, 9)}, "has 9 columns"),
        ({"shape": (5, 8)}, "has 5 rows"),
        ({"row_order": reversed_rows(3)}, "sources and row order give 3"),
        ({"row_order": RowOrder(label="", index=[0, 1, 2, 4])}, "names row 4"),
        ({"row_order": RowOrder(label="", index=[0, 1, 2, -1])}, "negative row"),
    ],
)
def test_a_plan_that_does_not_add_up_is_the_plugins_fault(change, says):
    with pytest.raises(BrokenPlugin, match=f"plugin author: .*{says}"):
        plan_for(two_tensors(), ToyBackend(changes={"a": change}))


def test_a_tensor_cannot_be_used_and_dropped():
    backend = ToyBackend(changes={"a": {"sources": ("a",)}}, drops=["b"])

    class Both(ToyBackend):
        def plan_tensors(self, request):
            plans = backend.plan_tensors(request)
            return TensorPlans(
                tensors=plans.tensors, dropped=(*plans.dropped, replace(plans.dropped[0], name="a"))
            )

    with pytest.raises(BrokenPlugin, match="both uses and drops source tensor 'a'"):
        plan_for(two_tensors(), Both())


def place(**fields) -> Place:
    return Place(**{"file": "toy.bin", "offset": 8, "nbytes": 128, "row_nbytes": 32} | fields)


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ((), "has no place for tensor 'a'"),
        ((place(file="else"),), "unknown file 'else'"),
        ((place(offset=4),), "overlaps"),
        ((place(nbytes=100),), "4 rows of 32 bytes are not 100 bytes"),
        ((place(offset=4000),), "ends at byte 4128"),
        ((place(rows_together=3),), "rows_together is 3, which does not divide 4 rows"),
    ],
)
def test_a_layout_that_does_not_add_up_is_the_plugins_fault(places, says):
    class Wrong(ToyBackend):
        def layout(self, request, plans):
            right = super().layout(request, plans)
            return Layout(files=right.files, places={**right.places, "a": places})

    with pytest.raises(BrokenPlugin, match=f"plugin author: .*{says}"):
        plan_for(two_tensors(), Wrong())


@pytest.mark.parametrize("path", ["/etc/passwd", "../up.bin", "a/../../b"])
def test_files_stay_inside_the_output_directory(path):
    with pytest.raises(BrokenPlugin, match="not inside the output directory"):
        plan_for(two_tensors(), ToyBackend(file=path))


def test_more_threads_need_more_memory():
    checkpoint = MemoryCheckpoint({"a": torch.ones(64, 4096)})
    one = plan_for(checkpoint, ToyBackend(), threads=1).needs
    four = plan_for(checkpoint, ToyBackend(), threads=4).needs
    assert four.ram_nbytes - one.ram_nbytes == 3 * 16 * 64 * 4096


def test_a_memory_limit_shrinks_the_slabs():
    checkpoint = MemoryCheckpoint({"a": torch.ones(1024, 4096)})
    free = plan_for(checkpoint, ToyBackend()).needs
    tight = plan_for(checkpoint, ToyBackend(), max_ram=570_000_000).needs
    assert tight.slab_weights < free.slab_weights
    assert tight.ram_nbytes <= 570_000_000


def test_too_little_memory_is_an_error_that_says_how_much():
    with pytest.raises(NotEnoughResources, match="needs at least .* bytes .*--max-ram"):
        plan_for(two_tensors(), ToyBackend(), max_ram=1000)


def test_too_little_disk_is_an_error_that_says_how_much(tmp_path):
    check_disk(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(NotEnoughResources, match="need .* more bytes, but only .* are free"):
        check_disk(tmp_path, 1 << 60)


def test_the_json_satisfies_its_schema():
    schema = json.loads((SCHEMAS / "plan.schema.json").read_text())
    plan = plan_for(two_tensors(), ToyBackend(drops=["b"]))
    jsonschema.validate(json.loads(json.dumps(plan.to_json())), schema)


def test_packed_codes_are_never_taken_for_weights():
    class Packed(MemoryCheckpoint):
        @property
        def model(self):
            config = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
            return replace(super().model, config=config)

    with pytest.raises(Unsupported, match="is quantized already .*method 'gptq'.*float checkpoint"):
        plan_for(Packed({"a": torch.ones(4, 8)}), ToyBackend(skips=["a"]), allow_unused=True)


@pytest.mark.parametrize(
    ("config", "files", "where"),
    [
        ({"text_config": {"quantization_config": {"bits": 4}}}, {}, "text_config quantization_c"),
        ({"compression_config": {"format": "dense"}}, {}, "compression_config in config.json"),
        ({}, {"hf_quant_config.json": b"{}"}, "hf_quant_config.json, method 'modelopt'"),
    ],
)
def test_codes_are_refused_wherever_it_says_so(config, files, where):
    class Packed(MemoryCheckpoint):
        @property
        def model(self):
            return replace(super().model, config=config, files=files)

    with pytest.raises(Unsupported, match=rf"is quantized already \({where}"):
        plan_for(Packed({"a": torch.ones(4, 8)}), ToyBackend())
