# Every target works on a fresh clone: it makes .venv and installs what it needs.
#
#   make install                     the locked packages into .venv
#   make install TORCH_INDEX=URL     with torch from another wheel index (PyTorch's CPU or CUDA one)
#   make demo  [ARGS=--exit]         one teacher, four runs, on this machine
#   make test  [ARGS='-k kd_loss']   the test suite; ARGS="-m 'long or browser'" for the rest
#   make faults [ARGS='T5 --json']   injects faults into real servers and trainers
#   make lint                        ruff, mypy and the page's types; needs npm (Node.js 20)
#   make llama-cpp                   llama.cpp, which the tests of GGUF files ask; needs npm
#   make ray                         Ray in .ray, which the tests of --launcher ray start
#   make peers                       what benchmarks and long tests compare with, such as TRL
#   make bench | protos

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
PEERS := .venv/.peers-installed
TYPESCRIPT := node_modules/.installed
LLAMA_CPP := .llama-cpp/.installed-3.22.1
RAY := .ray/.installed-2.60.0

.DEFAULT_GOAL := install
.PHONY: install demo test lint llama-cpp ray peers bench faults docs protos

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@echo "installing the locked packages into .venv; the first time, this takes a few minutes ..."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --progress-bar off -q -c requirements.lock \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[torch,data,quantized,gguf,gpu,lora,tensorboard,wandb,humaneval,openai,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/lectern demo $(ARGS)

test: $(STAMP)
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP) $(TYPESCRIPT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	node_modules/.bin/tsc

# The page has no build step; only checking its types needs npm. To update package-lock.json:
# npm install --package-lock-only --omit-lockfile-registry-resolved
$(TYPESCRIPT): package.json package-lock.json
	@command -v npm >/dev/null || \
	  { echo "make lint needs npm for the page's types: install Node.js 20 or later" >&2; exit 1; }
	npm ci --ignore-scripts --no-audit --no-fund
	touch $@

llama-cpp: $(LLAMA_CPP)

# Prebuilt for Linux on x86-64. Without --ignore-scripts it would look for a compiler.
$(LLAMA_CPP):
	@command -v npm >/dev/null || \
	  { echo "make llama-cpp needs npm: install Node.js 20 or later" >&2; exit 1; }
	rm -rf .llama-cpp && mkdir .llama-cpp && echo '{"private": true}' > .llama-cpp/package.json
	cd .llama-cpp && npm install --omit=optional --ignore-scripts --no-package-lock --no-audit \
	  --no-fund node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
	touch $@

ray: $(RAY)

# In an environment of its own: the control plane speaks to a cluster over HTTP and needs no Ray.
$(RAY):
	rm -rf .ray && $(PYTHON) -m venv .ray
	.ray/bin/pip install --disable-pip-version-check --progress-bar off -q 'ray[default]==2.60.0'
	touch $@

peers: $(PEERS)

bench: $(PEERS)
	$(BIN)/python -m benchmarks $(ARGS)

# Liger is installed without triton: only its CUDA kernels need that, and torch for CUDA brings it.
$(PEERS): $(STAMP)
	$(BIN)/pip install --disable-pip-version-check -q -c requirements.lock -e '.[bench]'
	$(BIN)/pip install --disable-pip-version-check -q -c requirements.lock --no-deps liger-kernel
	touch $@

faults: $(STAMP)
	$(BIN)/python -m faults $(ARGS)

# Pages that are generated from the source.
docs: $(STAMP)
	$(BIN)/python -m lectern_common.spec.page > docs/run-spec.md
	$(BIN)/python docs/make_map.py
	$(BIN)/python -m control_plane.api.openapi > docs/openapi.json

protos: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. --pyi_out=. protos/teacher.proto
