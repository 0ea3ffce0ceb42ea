# Causerie: `make serve` and `make test` are all a newcomer needs.
PYTHON      ?= python3
TORCH_INDEX ?=
ARGS        ?=

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: serve test test-slow check format bench chat install checkpoint clean

serve: $(VENV)/.installed  ## serve the default checkpoint (ARGS="--checkpoint PATH --port 8001")
	@$(BIN)/causerie serve $(ARGS)

chat: $(VENV)/.installed  ## talk to a checkpoint in the terminal; starts and stops a server of its own
	@$(BIN)/causerie chat --checkpoint checkpoints/causette $(ARGS)

test: $(VENV)/.installed-dev  ## the fast tests, under 5 minutes on 2 cores
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.installed-dev  ## what takes minutes or installs other packages, under 40 minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(VENV)/.installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## offline, then through HTTP, on the default checkpoint
	@$(BIN)/causerie bench-offline --checkpoint checkpoints/causette --json runs/offline.json
	@$(BIN)/causerie bench --spawn --checkpoint checkpoints/causette --offline runs/offline.json $(ARGS)

# Reproduces checkpoints/causette: about an hour on one core with AVX512_BF16; RESUME=--resume goes on.
checkpoint: $(VENV)/.installed  ## train the default checkpoint again, and score it
	@mkdir -p runs
	$(BIN)/causerie train facts runs/facts.jsonl --copies 30
	$(BIN)/causerie train sft --data runs/facts.jsonl --out checkpoints/causette --work runs/causette \
		--card checkpoints/causette/README.md --batch-size 32 --share-unseen 64 --prompt-loss 0.2 \
		--lr 0.0015 --warmup 200 --steps 10000 --validate-every 1000 --validation-share 0.005 $(RESUME)
	$(BIN)/causerie eval

install: $(VENV)/.installed

# torch first and pinned: an open range would bring gigabytes of CUDA packages to a CPU machine.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Causerie into $(VENV) (a minute or two, once)"
	@$(PIP) torch==2.13.0
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build runs *.egg-info
