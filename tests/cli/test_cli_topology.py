"""``qconv inspect --topology``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import save_file


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_topology_for_people(qconv_cli, llama):
    ran = qconv_cli("inspect", str(llama), "--topology")
    assert ran.code == 0, ran.err
    qkv = "self_attn.q_proj.weight, self_attn.k_proj.weight, self_attn.v_proj.weight"
    gate_up = "mlp.gate_proj.weight, mlp.up_proj.weight"
    assert ran.out.splitlines() == [
        f"{llama}: LlamaForCausalLM, 3 blocks of 1 kind",
        "",
        "model.layers.0, and 2 blocks like it up to model.layers.2",
        "  linears that share an input:",
        f"    {qkv}",
        "    self_attn.o_proj.weight",
        f"    {gate_up}",
        "    mlp.down_proj.weight",
        "  4 folds, output unchanged when both sides are rescaled:",
        f"    input_layernorm.weight -> {qkv}  (weight; error 0)",
        f"    post_attention_layernorm.weight -> {gate_up}  (weight; error 0)",
        "    self_attn.v_proj.weight -> self_attn.o_proj.weight  (rows; error 0)",
        "    mlp.up_proj.weight -> mlp.down_proj.weight  (rows; error 0)",
        "  4 candidates refused:",
        *(
            f"    {producer} -> {readers}: its input changes other than by a factor per column"
            for producer, readers in (
                ("self_attn.q_proj.weight", "self_attn.o_proj.weight"),
                ("self_attn.k_proj.weight", "self_attn.o_proj.weight"),
                ("self_attn.o_proj.weight", gate_up),
                ("mlp.gate_proj.weight", "mlp.down_proj.weight"),
            )
        ),
    ]


def test_topology_as_json(qconv_cli, llama):
    ran = qconv_cli("inspect", str(llama), "--topology", "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["counts"] == {"blocks": 3, "kinds": 1, "inputs": 4, "folds": 4, "refused": 4}
    (kind,) = document["kinds"]
    assert kind["blocks"] == [f"model.layers.{index}" for index in range(3)]
    (fold,) = (each for each in kind["folds"] if each["producer"] == "self_attn.v_proj.weight")
    assert (fold["channels"], fold["columns"], fold["rows"]) == (16, 32, [0, 16])
    assert [part["parameter"] for part in fold["consumers"]] == ["self_attn.o_proj.weight"]
    assert sum(verdict["accepted"] for verdict in kind["verdicts"]) == 4


def test_experts_share_a_line(qconv_cli, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    ran = qconv_cli("inspect", str(tmp_path), "--topology")
    assert ran.code == 0, ran.err
    lines = [line.strip() for line in ran.out.splitlines()]
    assert "mlp.experts.gate_up_proj[*]  x4" in lines
    assert (
        "mlp.experts.gate_up_proj[*, 48:96] -> mlp.experts.down_proj[*]  "
        "(rows, one per expert: 4; error 0)"
    ) in lines


def test_blocks_with_and_without_experts_are_two_kinds(qconv_cli, tmp_path):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=24, head_dim=8, mlp_only_layers=[1],
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    ran = qconv_cli("inspect", str(tmp_path), "--topology", "--json")
    assert ran.code == 0, ran.err
    kinds = json.loads(ran.out)["kinds"]
    names = [[name.removeprefix("model.layers.") for name in kind["blocks"]] for kind in kinds]
    assert names == [["0", "2"], ["1"]]
    assert [len(kind["folds"]) for kind in kinds] == [7, 4]


def test_a_gguf_file_has_no_blocks_to_run(qconv_cli, tmp_path):
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    values = torch.zeros(4, 32).numpy()
    writer.add_tensor("token_embd.weight", values, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ran = qconv_cli("inspect", str(path), "--topology")
    assert ran.code == 4
    assert "needs a config.json; give the Hugging Face directory" in ran.err


def test_weights_without_a_config_cannot_be_run(qconv_cli, tmp_path):
    save_file({"a.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    ran = qconv_cli("inspect", str(tmp_path / "model.safetensors"), "--topology")
    assert ran.code in {3, 4}
    assert "config.json" in ran.err
