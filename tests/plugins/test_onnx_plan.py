"""What the ONNX backend plans, refuses and lays out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf_driver import read_model
from onnx_driver import BERT, save_bert, save_llama, write
from safetensors.torch import load_file, save_file

import qconv
from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported, UnsupportedGrid, UsageError
from qconv.grids import ActivationGrid, UniformGrid
from qconv.plugin import ModelInfo, PlanRequest, TensorInfo
from qconv.tensors import QuantTensor
from qconv_onnx._backend import OnnxBackend
from qconv_onnx._export import export_graph
from qconv_onnx._options import read_scheme
from qconv_onnx._planner import plan as plan_tensors
from qconv_onnx._reader import OnnxReader


@pytest.fixture(scope="module")
def backend() -> OnnxBackend:
    return OnnxBackend()


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "tiny", num_hidden_layers=1)


@pytest.fixture(scope="module")
def model(llama) -> ModelInfo:
    return read_model(llama)[0]


def _plan(backend: OnnxBackend, model: ModelInfo, target: str = "int4", **options: str):
    return backend.plan_tensors(PlanRequest(model=model, format=target, options=options))


def _tensor(name: str, *shape: int, dtype: str = "F32") -> TensorInfo:
    info = TensorInfo(name=name, shape=shape, dtype=dtype, nbytes=0)
    return replace(info, nbytes=info.numel * 4)


def _with(model: ModelInfo, *more: TensorInfo) -> ModelInfo:
    return replace(model, tensors={**model.tensors, **{each.name: each for each in more}})


def test_linears_of_blocks_are_quantized_embedding_and_head_at_8_bits_and_norms_are_float(
    backend, model
):
    plans = _plan(backend, model)
    grids = {each.name: each.grid.name if each.grid else each.dtype for each in plans.tensors}
    block = "model.layers.0"
    assert grids == {
        "model.embed_tokens.weight": "uint8_g32",
        **{f"{block}.self_attn.{name}_proj.weight": "uint4_g32" for name in "qkvo"},
        **{f"{block}.mlp.{name}_proj.weight": "uint4_g32" for name in ("gate", "up", "down")},
        f"{block}.input_layernorm.weight": "float32",
        f"{block}.post_attention_layernorm.weight": "float32",
        "model.norm.weight": "float32",
    }
    assert not plans.dropped
    assert all(each.activation is None for each in plans.tensors)


def test_scales_are_stored_in_what_the_graph_computes_in(backend, model):
    for target in ("w8", "int4", "int4_qdq", "w8a8"):
        grids = [each.grid for each in _plan(backend, model, target).tensors if each.grid]
        assert {grid.spec()["scale_dtype"] for grid in grids} == {"float32"}


@pytest.mark.parametrize(
    ("target", "name"), [("w8a8", "int8_token"), ("int8_static", "uint8_tensor_static")]
)
def test_integer_formats_say_how_inputs_are_rounded(backend, model, target, name):
    plans = _plan(backend, model, target).tensors
    linears = [each for each in plans if each.grid and "embed" not in each.name]
    assert {each.activation.name for each in linears if each.activation} == {name}
    assert all(each.activation for each in linears)


def test_int8_of_a_decoder_is_w8_and_of_an_encoder_w8a8_and_the_plan_says_why(
    backend, model, tmp_path
):
    for each in (plan for plan in _plan(backend, model, "int8").tensors if plan.grid):
        assert (each.operator, each.activation) == ("nbits", None)
        if "embed" not in each.name:
            assert "int8 of a decoder is w8: it generates one token at a time" in each.reason
    encoder, _ = read_model(save_bert(tmp_path / "bert", num_hidden_layers=1))
    linears = [each for each in _plan(OnnxBackend(), encoder, "int8").tensors if each.activation]
    assert {each.operator for each in linears} == {"integer"}
    assert "int8 of an encoder is w8a8: it takes many tokens at once" in linears[0].reason


def test_an_option_of_the_other_int8_is_refused_with_what_int8_is(backend, tmp_path):
    encoder, _ = read_model(save_bert(tmp_path / "bert", num_hidden_layers=1))
    with pytest.raises(UsageError, match=r"onnx:int8 \(w8a8 for this model\): option 'group_size'"):
        _plan(backend, encoder, "int8", group_size="32")


def test_on_cuda_the_codes_of_w8a8_are_weights_only(llama, backend, model, tmp_path):
    linears = {
        each.name: each
        for each in _plan(backend, model, "w8a8", provider="cuda").tensors
        if each.grid and "embed" not in each.name
    }
    assert {(each.operator, each.activation) for each in linears.values()} == {("channel", None)}
    assert all("no kernel on CUDA" in each.reason for each in linears.values())
    on_cpu, values = write(backend, llama, tmp_path / "cpu", "w8a8")
    on_cuda, _ = write(backend, llama, tmp_path / "cuda", "w8a8", provider="cuda")
    for name in values.keys() - {"model.embed_tokens.weight"}:  # in blocks there
        assert torch.equal(OnnxReader(on_cpu).read(name), OnnxReader(on_cuda).read(name)), name


@pytest.mark.parametrize("above", ["0", "1", "-0.1", "much", "nan"])
def test_a_limit_of_errors_that_is_none_is_refused(backend, model, above):
    with pytest.raises(UsageError, match="choose a relative error between 0 and 1"):
        _plan(backend, model, "w8a8", sensitive_above=above)


def test_a_limit_goes_with_measurement_only(backend, model):
    with pytest.raises(UsageError, match=r"sensitive_above=0\.1 goes with sensitive=auto"):
        _plan(backend, model, "w8a8", sensitive_above="0.1", sensitive="none")


def test_a_sensitive_layer_that_the_model_lacks_is_named_with_those_it_has(backend, model):
    with pytest.raises(
        UsageError, match=r"sensitive=fc2: .* this model has down_proj, gate_proj, head"
    ):
        _plan(backend, model, "w8a8", sensitive="fc2+down_proj")


def test_a_plan_that_hangs_on_errors_asks_for_them_until_it_has_them(backend, model):
    asked = _plan(backend, model, "w8a8")
    assert asked.asks_input_errors
    assert not _plan(backend, model, "w8a8", sensitive="none").asks_input_errors
    assert not _plan(backend, model, "w8").asks_input_errors
    name = "model.layers.0.mlp.down_proj.weight"
    request = PlanRequest(model=model, format="w8a8", input_errors={name: 0.25})
    anew = backend.plan_tensors(request)
    assert not anew.asks_input_errors
    (found,) = (each for each in anew.tensors if each.name == name)
    assert (found.operator, found.activation) == ("nbits", None)
    assert found.reason == (
        "rounding its input would change its output by 25.0%, more than 10.0%: 8 bits, weights only"
    )


def test_a_layer_that_was_not_measured_says_so(backend, model):
    name, other = (f"model.layers.0.mlp.{each}_proj.weight" for each in ("down", "up"))
    unmeasured = "what rounding its input does was not measured"
    request = PlanRequest(model=model, format="w8a8", input_errors={name: 0.01})
    reasons = {each.name: each.reason for each in backend.plan_tensors(request).tensors}
    assert unmeasured in reasons[other]
    assert unmeasured not in reasons[name]
    assert not any(unmeasured in each.reason for each in _plan(backend, model, "w8a8").tensors)


def _tables(plans) -> dict[str, str]:
    return {
        each.name: each.grid.name if each.grid else each.dtype
        for each in plans.tensors
        if "embed" in each.name or "head" in each.name
    }


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({}, "uint8_g32"),
        ({"head": "4"}, "int4_g32"),  # of 4 bits, zero-points would have to be packed twice
        ({"head": "float"}, "float32"),
        ({"embedding": "float"}, "float32"),
        ({"symmetric": "true", "group_size": "64"}, "int8_g64"),
    ],
    ids=str,
)
def test_a_tied_table_is_one(backend, model, options, table):
    assert _tables(_plan(backend, model, "int4", **options)) == {"model.embed_tokens.weight": table}


@pytest.mark.parametrize(
    ("options", "embedding", "head"),
    [
        ({}, "uint8_g32", "uint8_g32"),
        ({"head": "4"}, "uint8_g32", "uint4_g32"),
        ({"head": "float"}, "uint8_g32", "float32"),
        ({"embedding": "float"}, "float32", "uint8_g32"),
    ],
    ids=str,
)
def test_tables_of_their_own_have_bits_of_their_own(untied, options, embedding, head):
    backend, model = untied
    assert _tables(_plan(backend, model, "int4", **options)) == {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
    }


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> tuple[OnnxBackend, ModelInfo]:
    folder = tmp_path_factory.mktemp("untied") / "tiny"
    save_llama(folder, num_hidden_layers=1, tie_word_embeddings=False)
    return OnnxBackend(), read_model(folder)[0]


def test_a_table_that_blocks_do_not_divide_stays_float_and_is_told(tmp_path):
    folder = save_llama(tmp_path / "odd", num_hidden_layers=1, hidden_size=48, head_dim=16)
    plans = _plan(OnnxBackend(), read_model(folder)[0], "int8_static")
    (table,) = (each for each in plans.tensors if "embed" in each.name)
    assert (table.dtype, table.fallback_from) == ("float32", "uint8_g32")
    assert table.reason == "48 columns are not a multiple of 32"


@pytest.mark.parametrize(
    ("options", "embedding", "head"),
    [
        ({}, "rows", "rows"),
        ({"head": "4"}, "rows", "nbits"),
        ({"sensitive": "head"}, "rows", "nbits"),
        ({"embedding": "float"}, None, "rows"),
    ],
    ids=str,
)
def test_tables_are_by_row_where_products_are_of_integers(untied, options, embedding, head):
    backend, model = untied
    plans = {each.name: each for each in _plan(backend, model, "w8a8", **options).tensors}
    found = plans["model.embed_tokens.weight"], plans["lm_head.weight"]
    assert tuple(each.operator for each in found) == (embedding, head)
    rounded = ActivationGrid() if head == "rows" else None
    assert tuple(each.activation for each in found) == (None, rounded)


def test_a_head_whose_input_rounds_badly_keeps_it_float(backend, model):
    name = "model.embed_tokens.weight"
    request = PlanRequest(model=model, format="w8a8", input_errors={name: 0.25})
    (found,) = (each for each in backend.plan_tensors(request).tensors if each.name == name)
    assert (found.operator, found.activation) == ("nbits", None)
    assert "rounding its input would change its output by 25.0%" in found.reason
    request = PlanRequest(model=model, format="w8a8", input_errors={name: 0.01})
    (found,) = (each for each in backend.plan_tensors(request).tensors if each.name == name)
    assert (found.operator, found.activation) == ("rows", ActivationGrid())


def test_what_is_beside_the_blocks_is_in_8_bits_where_products_are_of_integers(tmp_path):
    folder = save_bert(tmp_path / "bert", hidden_size=128, max_position_embeddings=128)
    model = read_model(folder)[0]
    plans = {each.name: each for each in _plan(OnnxBackend(), model, "w8a8").tensors}
    kinds = {name: each.operator for name, each in plans.items() if "encoder" not in name}
    assert {name: kind for name, kind in kinds.items() if kind} == {
        "embeddings.word_embeddings.weight": "rows",
        "embeddings.position_embeddings.weight": "rows",
        "pooler.dense.weight": "integer",
    }
    assert plans["embeddings.position_embeddings.weight"].activation is None
    assert plans["embeddings.token_type_embeddings.weight"].reason == "a small table stays float"
    float_tables = _plan(OnnxBackend(), model, "w8a8", embedding="float").tensors
    asked = {each.reason for each in float_tables if "_embeddings" in each.name}
    assert asked == {"embedding: float", "a table: float as asked"}
    others = _plan(OnnxBackend(), model, "w8").tensors
    assert {each.operator for each in others if "position" in each.name} == {None}
    named = {
        each.name: each for each in _plan(OnnxBackend(), model, "w8a8", sensitive="pooler").tensors
    }
    assert named["pooler.dense.weight"].operator == "nbits"
    known = PlanRequest(model=model, format="w8a8", input_errors={"encoder": 0.01})
    reasons = {each.name: each.reason for each in OnnxBackend().plan_tensors(known).tensors}
    assert "not measured, as it is beside the blocks" in reasons["pooler.dense.weight"]


def test_what_gives_an_output_beside_the_blocks_stays_float(tmp_path):
    folder = save_bert(
        tmp_path / "bert", "BertForSequenceClassification", hidden_size=128, num_labels=200
    )
    model = read_model(folder)[0]
    plans = {each.name: each for each in _plan(OnnxBackend(), model, "w8a8").tensors}
    assert plans["classifier.weight"].operator is None
    assert plans["bert.pooler.dense.weight"].operator == "integer"
    for target, name in (("int8_static", "pooler"), ("w8a8", "classifier"), ("w8a8", "bert")):
        with pytest.raises(UsageError, match=f"sensitive={name}: no linear layer is called so"):
            _plan(OnnxBackend(), model, target, sensitive=name)


def test_a_table_of_angles_stays_float(tmp_path):
    import transformers

    config = transformers.RoFormerConfig(
        **{**BERT, "hidden_size": 128, "embedding_size": 128, "max_position_embeddings": 512}
    )
    transformers.RoFormerModel(config).save_pretrained(tmp_path / "roformer")
    model = read_model(tmp_path / "roformer")[0]
    plans = {each.name: each for each in _plan(OnnxBackend(), model, "w8a8").tensors}
    assert plans["encoder.embed_positions.weight"].operator is None
    assert plans["embeddings.word_embeddings.weight"].operator == "rows"


def test_a_tied_head_in_the_checkpoint_is_dropped_with_its_reason(model):
    head = _tensor("lm_head.weight", 160, 64)
    dropped = _plan(OnnxBackend(), _with(model, head), "fp32").dropped
    assert [each.name for each in dropped] == ["lm_head.weight"]
    assert dropped[0].reason == "tied to model.embed_tokens.weight by config.json"


def test_a_buffer_in_the_checkpoint_is_dropped_with_its_reason(model):
    buffer = _tensor("model.rotary_emb.inv_freq", 8)
    (dropped,) = _plan(OnnxBackend(), _with(model, buffer), "fp32").dropped
    assert (dropped.name, dropped.reason) == (buffer.name, "computed from config.json")


def test_the_same_inputs_give_the_same_bytes(llama, backend, tmp_path):
    once, _ = write(backend, llama, tmp_path / "once", "int4")
    again, _ = write(OnnxBackend(), llama, tmp_path / "again", "int4")
    for file in sorted(once.iterdir()):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    graph = (once / "model.onnx").read_bytes()
    assert b"site-packages" not in graph
    assert str(Path.cwd()).encode() not in graph


@pytest.mark.parametrize("target", ["int4", "int4_qdq", "w8a8"])
def test_the_pipeline_writes_what_the_backend_encodes(llama, backend, tmp_path, target):
    expected, _ = write(backend, llama, tmp_path / "driver", target)
    made = qconv.convert(llama, to=f"onnx:{target}", out=tmp_path / "host", threads=2)
    folder = tmp_path / "host" / expected.name
    assert {path.name for path in made.artifacts[0].files} == {
        "config.json",
        "genai_config.json",
        "generation_config.json",
        "model.onnx",
        "model.onnx.data",
    }
    assert folder.name == f"tiny-ONNX-{target.upper()}"
    for file in sorted(expected.iterdir()):
        assert file.read_bytes() == (folder / file.name).read_bytes(), file.name


def test_exporting_takes_no_memory_for_weights(backend, model):
    resource = pytest.importorskip("resource")
    _plan(backend, model)  # what torch and transformers take for themselves
    rows, before = 1 << 20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide = _with(model, _tensor("model.embed_tokens.weight", rows, 64))
    config = {**model.config, "vocab_size": rows}
    plans = _plan(OnnxBackend(), replace(wide, config=config))
    assert plans.tensors[-1].name
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB; bytes on macOS
    assert sum(each.shape[0] * 64 * 4 for each in plans.tensors if each.shape[0] == rows) == 1 << 28
    assert taken < (1 << 27) / 1024


def test_large_parts_begin_on_a_page(tmp_path):
    folder = save_llama(tmp_path / "wide", num_hidden_layers=1, vocab_size=8192)
    model, _ = read_model(folder)
    backend, request = OnnxBackend(), PlanRequest(model=model, format="fp32")
    layout = backend.layout(request, backend.plan_tensors(request))
    places = [place for each in layout.places.values() for place in each]
    assert any(place.nbytes >= 1 << 20 for place in places)
    for place in places:
        assert place.offset % (4096 if place.nbytes >= 1 << 20 else 64) == 0


def test_an_option_of_another_format_is_refused(backend, model):
    with pytest.raises(UsageError, match="onnx:w8a8: option 'group_size' means nothing here"):
        _plan(backend, model, "w8a8", group_size="32")


def test_groups_that_do_not_divide_are_refused_with_what_does(model):
    with pytest.raises(UnsupportedGrid, match="64 columns are not a multiple of group size 128"):
        _plan(OnnxBackend(), model, "int4", group_size="128")


def test_a_transcoding_is_refused(backend, model):
    grid = UniformGrid(bits=4, symmetric=False, group_size=32)
    request = PlanRequest(model=model, format="int4", held={"model.norm.weight": grid})
    with pytest.raises(Unsupported, match="transcoding to ONNX is not offered"):
        backend.plan_tensors(request)


def test_a_model_without_linears_of_blocks_has_nothing_to_quantize(model):
    request = PlanRequest(model=model, format="w8")
    scheme = read_scheme(request, is_decoder=True)
    graph = export_graph(model, dtype="float32", kv_cache=True)
    with pytest.raises(Unsupported, match="no linear weight of a block was found among"):
        plan_tensors(request, scheme, replace(graph, products={}))


def test_an_unknown_architecture_is_named(backend, model):
    other = replace(model, config={**model.config, "model_type": "unheard_of"})
    with pytest.raises(Unsupported, match="does not know model_type 'unheard_of'"):
        _plan(backend, other)


def test_a_source_without_a_config_is_refused(backend, model):
    with pytest.raises(Unsupported, match=r"no config\.json that names a model_type"):
        _plan(backend, replace(model, config={}))


def test_an_encoder_with_a_decoder_is_refused(backend, model):
    other = replace(model, config={"model_type": "t5"})
    with pytest.raises(Unsupported, match="'t5' has an encoder and a decoder"):
        _plan(backend, other)


def test_a_malformed_config_is_unreadable(backend, model):
    other = replace(model, config={**model.config, "hidden_size": "wide"})
    with pytest.raises(UnreadableInput, match=r"config\.json"):
        _plan(backend, other)


def test_a_missing_tensor_is_named(backend, model):
    tensors = {k: v for k, v in model.tensors.items() if "down_proj" not in k}
    with pytest.raises(Unsupported, match=r"has parameter 'model\.layers\.0\.mlp\.down_proj"):
        _plan(backend, replace(model, tensors=tensors))


def test_a_tensor_of_another_shape_is_named(backend, model):
    other = _with(model, _tensor("model.norm.weight", 65))
    with pytest.raises(Unsupported, match=r"'model\.norm\.weight': shape \(65,\), but config"):
        _plan(backend, other)


def test_integers_in_place_of_floats_are_refused(model):
    other = _with(model, _tensor("model.norm.weight", 64, dtype="I64"))
    with pytest.raises(Unsupported, match=r"tensor 'model\.norm\.weight' is I64"):
        _plan(OnnxBackend(), other, "fp32")


def test_a_model_that_keeps_no_keys_and_values_needs_another_option(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=64, num_hidden_layers=1, vocab_size=160, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    model, _ = read_model(tmp_path / "mamba")
    with pytest.raises(Unsupported, match="something else than keys and values"):
        _plan(OnnxBackend(), model, "fp32")


def test_a_missing_library_is_told_with_what_to_install(backend, model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    other = replace(model, name="another", config={**model.config, "rope_theta": 1.0})
    with pytest.raises(BrokenPlugin, match=r"pip install 'qconv\[onnx\]'"):
        _plan(OnnxBackend(), other)


def test_an_encoder_whose_checkpoint_has_no_pooler_has_no_output_of_it(tmp_path):
    folder = save_bert(tmp_path / "bert", num_hidden_layers=1)
    file = folder / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if "pooler" not in k}
    save_file(weights, file, {"format": "pt"})
    artifact, _ = write(OnnxBackend(), folder, tmp_path, "fp32")
    import onnx

    graph = onnx.load(artifact / "model.onnx", load_external_data=False).graph
    assert [each.name for each in graph.output] == ["last_hidden_state"]


def test_a_head_of_its_own_gives_its_own_output(tmp_path):
    folder = save_bert(tmp_path / "bert", "BertForSequenceClassification", num_hidden_layers=1)
    artifact, _ = write(OnnxBackend(), folder, tmp_path, "int4")
    import onnx

    graph = onnx.load(artifact / "model.onnx", load_external_data=False).graph
    assert [each.name for each in graph.output] == ["logits"]


@pytest.fixture
def artifact(llama, backend, tmp_path) -> Path:
    return write(backend, llama, tmp_path, "int4")[0]


def _changed(artifact: Path, key: str, value: str) -> None:
    """The graph with one thing said otherwise of where its first quantized weight lies."""
    import onnx

    model = onnx.load(artifact / "model.onnx", load_external_data=False)
    tensor = next(x for x in model.graph.initializer if x.name.endswith("_quantized"))
    entry = next(each for each in tensor.external_data if each.key == key)
    entry.value = value
    (artifact / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/b", ""])
def test_weights_outside_the_folder_are_refused(artifact, location):
    _changed(artifact, "location", location)
    with pytest.raises(UnreadableInput, match="weights must lie beside the graph"):
        OnnxReader(artifact)


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "99999999"), ("length", "9" * 18), ("offset", "-1")]
)
def test_weights_beyond_the_file_are_refused(artifact, key, value):
    _changed(artifact, key, value)
    with pytest.raises(UnreadableInput, match="is to lie at byte"):
        OnnxReader(artifact)


def test_missing_weights_are_told(artifact):
    (artifact / "model.onnx.data").unlink()
    with pytest.raises(UnreadableInput, match="but the file holds 0"):
        OnnxReader(artifact)


def test_a_file_that_is_no_graph_is_unreadable(artifact):
    (artifact / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(UnreadableInput, match="not a sound ONNX file"):
        OnnxReader(artifact)


def test_encode_leaves_its_input_as_it_is(backend, model):
    for target in ("w8", "int4", "int4_qdq", "w8a8"):
        plan = next(each for each in reversed(_plan(backend, model, target).tensors) if each.grid)
        from qconv.tensors import QuantTensor

        codes, parameters = plan.grid.quantize(torch.randn(plan.shape))
        value = QuantTensor(grid=plan.grid, codes=codes, parameters=parameters)
        kept = [codes.clone(), *(each.clone() for each in parameters.values())]
        once, again = backend.encode(plan, value), backend.encode(plan, value)
        assert [bytes(each) for each in once] == [bytes(each) for each in again]
        assert all(
            torch.equal(a, b) for a, b in zip(kept, [codes, *parameters.values()], strict=True)
        )


def test_config_and_tokenizer_lie_beside_the_graph(artifact, llama):
    config = json.loads((artifact / "config.json").read_text())
    assert config == json.loads((llama / "config.json").read_text())


def test_a_float_that_comes_quantized_is_the_plugins_fault(backend, model):
    norm = next(each for each in _plan(backend, model).tensors if each.grid is None)
    grid = UniformGrid(bits=4, symmetric=True, group_size=32, scale_dtype="float32")
    codes, parameters = grid.quantize(torch.ones(1, 64))
    value = QuantTensor(grid=grid, codes=codes, parameters=parameters)
    with pytest.raises(UnsupportedGrid, match="plugin author: .* stay float, and came quantized"):
        backend.encode(norm, value)
