"""The quality benchmark decodes what converters write, compares fairly, and its commands run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import quality
import quality_artifacts as artifacts
import quality_run
import quality_score
import quality_table
import quality_windows

ROWS, COLUMNS, GROUP = 12, 64, 32


def packed(codes: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """Codes along the last dimension in int32 words, written out one by one."""
    per_word = 32 // bits
    words = []
    for row in codes.tolist():
        chunks = [row[start : start + per_word] for start in range(0, len(row), per_word)]
        words.append([sum(code << (bits * at) for at, code in enumerate(c)) for c in chunks])
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


@pytest.fixture
def codes() -> torch.Tensor:
    return torch.randint(0, 16, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def zero() -> torch.Tensor:
    shape = (ROWS, COLUMNS // GROUP)
    return torch.randint(1, 16, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def scale() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(ROWS, COLUMNS // GROUP, generator=generator).to(torch.bfloat16)


def by_hand(codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    spread = torch.arange(COLUMNS) // GROUP
    return (codes - zero[:, spread]).float() * scale.float()[:, spread]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_unpacking_undoes_packing(bits):
    codes = (torch.arange(256) % 2**bits).view(4, 64)
    assert torch.equal(artifacts.unpack(packed(codes, bits), bits), codes)


def compressed(codes, scale, zero=None) -> dict[str, torch.Tensor]:
    tensors = {
        "x.weight_packed": packed(codes),
        "x.weight_scale": scale,
        "x.weight_shape": torch.tensor(codes.shape),
    }
    if zero is not None:
        tensors["x.weight_zero_point"] = packed(zero.T.contiguous()).T.contiguous()
    return tensors


def test_pack_quantized_without_zero_points_is_centred(codes, scale):
    decoded = artifacts.packed_compressed(compressed(codes, scale), "x")
    assert torch.equal(decoded, by_hand(codes, torch.full(scale.shape, 8), scale))


def test_pack_quantized_zero_points_lie_along_the_rows(codes, zero, scale):
    tensors = compressed(codes, scale, zero)
    assert tensors["x.weight_zero_point"].shape == (2, 2)  # 12 rows of 4 bits: two words
    decoded = artifacts.packed_compressed(tensors, "x")
    assert torch.equal(decoded, by_hand(codes, zero, scale))


def test_int_quantized_has_a_scale_for_each_row(codes):
    tensors = {"x.weight": (codes - 8).to(torch.int8), "x.weight_scale": torch.rand(ROWS, 1)}
    expected = (codes - 8) * tensors["x.weight_scale"]
    assert torch.equal(artifacts.int_compressed(tensors, "x"), expected)


@pytest.mark.parametrize("borrowed", [0, 1])
def test_gptq_zero_points_are_one_less_in_version_1(codes, zero, scale, borrowed):
    # twelve rows would leave half a word of zero-points: such layers are not written as GPTQ
    codes, zero, scale = codes[:8], zero[:8], scale[:8]
    tensors = {
        "x.qweight": packed(codes).T.contiguous(),
        "x.qzeros": packed(zero.T.contiguous() - borrowed),
        "x.scales": scale.T.contiguous(),
    }
    decoded = artifacts.gptq(tensors, "x", borrowed=borrowed)
    assert torch.equal(decoded, by_hand(codes, zero, scale))


def test_gptq_columns_may_name_their_groups(codes, zero, scale):
    codes, zero, scale = codes[:8], zero[:8], scale[:8]
    groups = torch.arange(COLUMNS) % 2
    tensors = {
        "x.qweight": packed(codes).T.contiguous(),
        "x.qzeros": packed(zero.T.contiguous()),
        "x.scales": scale.T.contiguous(),
        "x.g_idx": groups.int(),
    }
    expected = (codes - zero[:, groups]).float() * scale.float()[:, groups]
    assert torch.equal(artifacts.gptq(tensors, "x", borrowed=0), expected)


def test_awq_nibbles_are_interleaved(codes, zero, scale):
    codes, zero, scale = codes[:8], zero[:8], scale[:8]
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {
        "x.qweight": packed(codes.T[:, order].contiguous()),
        "x.qzeros": packed(zero.T[:, order].contiguous()),
        "x.scales": scale.T.contiguous(),
    }
    assert torch.equal(artifacts.awq_gemm(tensors, "x"), by_hand(codes, zero, scale))


def test_rotary_order_is_undone():
    weight = torch.arange(2 * 8 * 3).float().view(16, 3)
    # as convert_hf_to_gguf.py orders rows: halves of each head become pairs
    turned = weight.view(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)
    assert torch.equal(artifacts.rotary_undone(turned, 2), weight)


# --- whole models ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(model) -> quality_score.Judge:
    windows = torch.randint(0, 96, (3, 32), generator=torch.Generator().manual_seed(1))
    return quality_score.Judge(model, windows)


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return {inner: outer for outer, inner in artifacts.GGUF_NAMES.items()}[stem] + ".weight"
    number, inner = stem.removeprefix("model.layers.").split(".", 1)
    outer = {inner: outer for outer, inner in artifacts.GGUF_BLOCK_NAMES.items()}[inner]
    return f"blk.{number}.{outer}.weight"


def as_llama_cpp(name: str, weight: torch.Tensor) -> torch.Tensor:
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads is None:
        return weight
    return weight.view(heads, 2, -1, 64).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, state: dict[str, torch.Tensor], kind) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(64)
    for name, tensor in state.items():
        stored = kind if tensor.dim() == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(as_llama_cpp(name, tensor).numpy(), stored)
        writer.add_tensor(gguf_name(name), data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_gives_the_source_tensors_back(model, judge, tmp_path):
    state = load_file(model / "model.safetensors")
    write_gguf(tmp_path / "tiny.gguf", state, gguf.GGMLQuantizationType.F32)
    found = artifacts.open_artifact(tmp_path / "tiny.gguf", judge.config)
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], state[name]) for name in state)
    assert found.linear_bits == 32
    assert artifacts.hidden_size(tmp_path / "tiny.gguf") == artifacts.hidden_size(model) == 64


def test_linears_only_leaves_a_quantized_embedding_out(model, judge, tmp_path):
    state = load_file(model / "model.safetensors")
    write_gguf(tmp_path / "tiny.gguf", state, gguf.GGMLQuantizationType.Q8_0)
    found = artifacts.open_artifact(tmp_path / "tiny.gguf", judge.config)
    assert found.linear_bits == 8.5
    everything = judge.score(found)
    linears = judge.score(found, linears_only=True)
    assert 0 < linears.kl < everything.kl


def test_a_model_loses_nothing_to_itself(model, judge):
    score = judge.score(artifacts.open_artifact(model, judge.config))
    assert score.kl == pytest.approx(0, abs=1e-6)
    assert score.top1 == 1
    assert score.perplexity_ratio == pytest.approx(1, abs=1e-6)
    assert score.perplexity == pytest.approx(judge.perplexity)


def test_the_score_is_what_torch_says(model, judge):
    from transformers import LlamaForCausalLM

    state = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    state[name] = state[name] + 0.3
    changed = artifacts.Artifact(state=state, linear_bits=32, nbytes=0)
    score = judge.score(changed)

    float_model = LlamaForCausalLM.from_pretrained(model)
    other = LlamaForCausalLM.from_pretrained(model)
    other.load_state_dict({name: state[name]}, strict=False)
    with torch.no_grad():
        p = float_model(judge.windows).logits.log_softmax(-1)
        q = other(judge.windows).logits.log_softmax(-1)
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    loss = torch.nn.functional.cross_entropy(q[:, :-1].flatten(0, 1), judge.windows[:, 1:].ravel())
    assert score.kl == pytest.approx(float(kl.mean()), rel=1e-4)
    assert score.kl_se == pytest.approx(float(kl.mean(1).std() / 3**0.5), rel=1e-4)
    assert score.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert score.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))


def test_positions_can_be_left_out(model, judge):
    windows = judge.windows
    late = quality_score.Judge(model, windows, skip=16)
    state = load_file(model / "model.safetensors")
    state = {name: tensor * 1.05 for name, tensor in state.items()}
    changed = artifacts.Artifact(state=state, linear_bits=32, nbytes=0)
    assert late.score(changed).kl != judge.score(changed).kl
    everything = judge.score(artifacts.Artifact(state=state, linear_bits=32, nbytes=0))
    assert len(everything.window_kl) == len(windows)


def test_an_artifact_that_lacks_a_tensor_is_no_model(model, judge):
    state = load_file(model / "model.safetensors")
    del state["model.norm.weight"]
    with pytest.raises(RuntimeError, match=r"model\.norm\.weight"):
        judge.score(artifacts.Artifact(state=state, linear_bits=32, nbytes=0))


def test_activations_round_to_even_on_a_scale_for_each_token():
    values = torch.tensor([[127.0, 2.5, -3.5, 0.4], [0.0, 0.0, 0.0, 0.0], [-254, 1.0, 3.0, 6]])
    expected = torch.tensor([[127.0, 2.0, -4.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-254, 0.0, 4.0, 6]])
    assert torch.equal(quality_score.round_tokens(values), expected)


def test_rounded_inputs_change_the_score_and_leave_no_hook(model, judge):
    whole = artifacts.open_artifact(model, judge.config)
    assert judge.score(whole, activations=True).kl > 1e-5
    assert judge.score(whole).kl == pytest.approx(0, abs=1e-6)


def test_a_compressed_checkpoint_is_read_with_what_it_says_of_activations(model, tmp_path):
    state = load_file(model / "model.safetensors")
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if artifacts.BLOCK_LINEAR.search(name):
            scale = tensor.abs().amax(1, keepdim=True) / 127
            out |= {name: (tensor / scale).round().to(torch.int8), f"{name}_scale": scale}
        else:
            out[name] = tensor
    save_file(out, tmp_path / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": {"input_activations": {"num_bits": 8}}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = artifacts.open_artifact(tmp_path, config)
    assert found.activations
    assert found.state.keys() == state.keys()
    assert 8 < found.linear_bits < 9
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(found.state[name], state[name], atol=float(state[name].abs().max()) / 200)


def test_an_unknown_format_is_named(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(SystemExit, match="quantized as 'bitsandbytes'"):
        artifacts.open_artifact(tmp_path, config)


# --- windows --------------------------------------------------------------------------------------


def test_shared_runs_are_found_and_rulers_do_not_count():
    text = torch.arange(40)
    assert quality_windows.shared_runs([text], [text[10:25]]) == 3
    assert quality_windows.shared_runs([text], [text[10:22]]) == 0
    ruler = torch.zeros(40, dtype=torch.int64)
    assert quality_windows.shared_runs([ruler], [ruler]) == 0


def test_windows_of_peers_and_of_qconv_are_read(tmp_path):
    tokens = torch.arange(12).view(3, 4)
    save_file({"tokens": tokens}, tmp_path / "peers.safetensors")
    ours = {"windows": tokens.ravel().int(), "lengths": torch.full((3,), 4)}
    save_file(ours, tmp_path / "ours.safetensors")
    for name in ("peers", "ours"):
        found = quality_windows.read_windows(tmp_path / f"{name}.safetensors")
        assert torch.equal(torch.stack(found), tokens)


# --- runs and tables ------------------------------------------------------------------------------


def test_a_conversion_onto_a_bench_grid_is_measured_and_read(model, tmp_path):
    workshop = quality_run.Workshop(tmp_path, threads=1)
    assert "rtn" in workshop.methods()
    (command,) = quality_run.commands(
        workshop,
        {"narrow": model},
        formats=["int4_g64"],
        methods=["rtn@none"],
        calibration="builtin",
        windows=2,
        length=16,
    )
    row = workshop.run(command)
    assert "failed" not in row, row
    assert row["cpu_s"] > 0
    assert quality_run.latest_runs(tmp_path) == [row]
    (entry,) = quality_table.our_entries([row])
    found = artifacts.open_artifact(entry.path, {})
    assert found.linear_bits == 4.25
    assert not found.activations
    name = "model.layers.1.self_attn.q_proj.weight"
    assert len(found.state[name][0].unique()) <= 16
    source = load_file(model / "model.safetensors")
    assert torch.equal(found.state["model.norm.weight"], source["model.norm.weight"])


def test_the_last_run_of_a_method_counts(tmp_path):
    rows = [{"format": "w8a8", "method": "rtn", "cpu_s": seconds} for seconds in (1, 2)]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert quality_run.latest_runs(tmp_path) == rows[1:]


def test_peers_are_paired_by_what_they_do_and_pay_for_their_importance_matrix(tmp_path):
    (tmp_path / "llama").mkdir()
    for name in ("Q4_K_M", "Q4_K_M-imatrix"):
        (tmp_path / "llama" / f"{name}.gguf").touch()
    (tmp_path / "llm-compressor-awq").mkdir()
    rows = [
        {"peer": "llama.cpp", "scheme": scheme, "out": f"/gone/llama/{file}"}
        for scheme, file in [
            ("convert-f16", "f16.gguf"),
            ("imatrix", "imatrix.gguf"),
            ("Q4_K_M", "Q4_K_M.gguf"),
            ("Q4_K_M-imatrix", "Q4_K_M-imatrix.gguf"),
        ]
    ]
    rows.append(
        {
            "peer": "llm-compressor",
            "scheme": "awq+gptq-asym",
            "group_size": 64,
            "windows": 8,
            "out": "/gone/llm-compressor-awq",
        }
    )
    measured = [{**row, "cpu_s": 2**at, "peak_mb": 1} for at, row in enumerate(rows)]
    text = "".join(json.dumps(row) + "\n" for row in measured)
    noise = "2026-11-24 | a peer's own warning\n{\n{'a': 1}\n"
    (tmp_path / "results.jsonl").write_text(noise + text)
    plain, weighted, both = quality_table.peer_entries(tmp_path)
    assert (plain.format, plain.cpu_s, plain.calibrated) == ("q4_k_m", 1 + 4, False)
    assert (weighted.cpu_s, weighted.calibrated) == (1 + 2 + 8, True)
    assert (both.format, both.steps, both.method) == ("uint4_g64", {"awq", "gptq"}, "awq")


def scored(converter: str, method: str, kl: list[float], *, steps=(), cpu=1.0):
    entry = quality_table.Entry(
        format="int4_g64",
        converter=converter,
        method=method,
        steps=frozenset(steps),
        calibrated=bool(steps),
        path=Path(),
        cpu_s=cpu,
        peak_mb=1,
    )
    row = {
        "activations": "float",
        "nbytes": 1,
        "linear_bits": 4.25,
        "kl": sum(kl) / len(kl),
        "kl_se": 0.0,
        "kl_p99": 0.0,
        "top1": 1.0,
        "perplexity_ratio": 1.0,
        "window_kl": kl,
    }
    return quality_table.Scored(entry=entry, row=row)


def test_ratios_are_to_the_same_method_and_to_the_best():
    members = [
        scored("peer", "rtn", [0.4, 0.6]),
        scored("peer", "gptq", [0.1, 0.3], steps=["gptq"], cpu=10),
        scored("slow", "gptq", [0.4, 0.4], steps=["gptq"], cpu=20),
        scored("qconv", "gptq", [0.05, 0.15], steps=["gptq"], cpu=4),
        scored("qconv", "rtn", [0.2, 0.3]),
    ]
    (table,) = quality_table.tables(members)
    *_, rtn, gptq = table.strip().splitlines()
    assert gptq.endswith("| 0.500 ± 0.000 | 0.500 ± 0.000 | 0.40 |")
    assert "qconv: gptq" in gptq
    assert rtn.endswith("| 1.00 |")
    assert "| 0.500 ± 0.000 | 1.250 ±" in rtn


def test_the_error_of_a_ratio_is_over_windows():
    assert quality_score.ratio([1.0, 2.0], [2.0, 4.0]) == (0.5, 0.0)
    whole, error = quality_score.ratio([1.0, 1.0], [1.0, 3.0])
    assert whole == 0.5
    assert error == pytest.approx(math.sqrt(0.5 * 2 * (1 / 3) ** 2))


@pytest.mark.parametrize("command", ["score", "run", "table"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        quality.parse([command, "--help"])
    assert "--held-out" in capsys.readouterr().out


def test_methods_and_formats_are_parsed():
    options = quality.parse(
        ["run", "--wide", "w", "--narrow", "n", "--out", "o", "--formats", "w8a8", "--methods",
         "gptq,damp=0.05@sequential", "--peers", "p"]
    )  # fmt: skip
    assert options.peers == [Path("p")]
    command = quality_run.Command(
        model=options.narrow,
        format="w8a8",
        method=options.methods[0],
        calibration="builtin",
        windows=4,
        length=64,
        out=options.out,
        threads=1,
    )
    assert command.steps == ["gptq"]
    assert command.arguments()[-2:] == ["--statistics", "sequential"]
    assert "gptq,damp=0.05" in command.arguments()
