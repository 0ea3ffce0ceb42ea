# Causerie: `make serve` and `make test` are all a newcomer needs.
PYTHON      ?= python3
TORCH_INDEX ?=
ARGS        ?=
MODEL        =

RECIPE := --batch-size 32 --keep last --prompt-loss 0.2 --validate-every 1000 --validation-share 0.005

# MODEL=smollm2-135m-instruct, MODEL=org/repo or MODEL=org/repo:FILE.gguf is pulled into checkpoints/ once.
PULLED = $(notdir $(firstword $(subst :, ,$(MODEL))))

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: serve test test-slow check format bench chat install checkpoint adapter report clean

serve: $(VENV)/.installed  ## serve the default checkpoint (ARGS="--checkpoint PATH --port 8001"), or MODEL
	@$(if $(MODEL),$(BIN)/causerie pull "$(MODEL)")
	@$(BIN)/causerie serve $(if $(MODEL),--checkpoint "checkpoints/$(PULLED)") $(ARGS)

chat: $(VENV)/.installed  ## talk to a checkpoint in the terminal; starts and stops a server of its own
	@$(BIN)/causerie chat --checkpoint checkpoints/causette $(ARGS)

test: $(VENV)/.installed-dev  ## the fast tests, under 5 minutes on 2 cores
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

test-slow: $(VENV)/.installed-dev  ## what takes minutes or installs other packages, under 40 minutes
	$(BIN)/python -m pytest -m slow --durations=20 $(ARGS)

check: $(VENV)/.installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## offline, then through HTTP, on the default checkpoint
	@$(BIN)/causerie bench --offline --checkpoint checkpoints/causette --json runs/offline.json --png runs/offline.png
	@$(BIN)/causerie bench --spawn --checkpoint checkpoints/causette --offline runs/offline.json $(ARGS)

# Reproduces checkpoints/causette in three stages; its card says how long they took.
checkpoint: $(VENV)/.installed  ## train the default checkpoint again, and score it
	@mkdir -p runs
	$(BIN)/causerie train facts runs/facts.jsonl --copies 30
	$(BIN)/causerie train sft --data runs/facts.jsonl --out runs/stage1 $(RECIPE) \
		--share-unseen 64 --lr 0.0015 --warmup 200 --steps 9000 --stop-after 3500
	$(BIN)/causerie train facts runs/phrasings.jsonl --copies 18 --seed 2 --also phrasings
	$(BIN)/causerie train sft --init runs/stage1 --data runs/phrasings.jsonl --out runs/stage2 $(RECIPE) \
		--negatives 2048 --lr 0.001 --warmup 100 --steps 6500 --stop-after 5000 --seed 2
	$(BIN)/causerie train facts runs/wordings.jsonl --copies 12 --seed 3 --also phrasings wordings --dialogue-copies 3
	$(BIN)/causerie train sft --init runs/stage2 --data runs/wordings.jsonl --out checkpoints/causette \
		--work runs/causette $(RECIPE) --negatives 2048 --lr 0.0007 --warmup 100 --steps 1600 --seed 3 \
		--card checkpoints/causette/README.md
	$(foreach set,test foreign followups,$(BIN)/causerie eval --data checkpoints/data/$(set).jsonl;)

# The same questions on another base: SmolLM2, or MODEL (openai-community/gpt2, say).
BASE   = $(or $(PULLED),smollm2-135m-instruct)
TUNED  = $(BASE)-causette

adapter: $(VENV)/.installed  ## train a LoRA adapter on SmolLM2, or MODEL, with the default checkpoint's questions
	@mkdir -p runs
	$(BIN)/causerie pull $(or $(MODEL),$(BASE))
	$(BIN)/causerie train facts runs/adapter.jsonl --copies 1 --unknown-copies 1 --also phrasings wordings
	$(BIN)/causerie train sft --init checkpoints/$(BASE) --lora-rank 16 --data runs/adapter.jsonl --out adapters/$(TUNED) \
		--batch-size 16 --lr 0.001 --epochs 1 --keep last --validate-every 0 --validation-share 0.005

report: $(VENV)/.installed  ## that adapter's base and the two together side by side: runs/report.html
	@mkdir -p runs
	$(BIN)/causerie merge checkpoints/$(BASE) adapters/$(TUNED) --out checkpoints/$(TUNED)
	$(BIN)/causerie eval --checkpoint checkpoints/$(BASE) --against checkpoints/$(TUNED) --report runs/report.html \
		--data checkpoints/data/test.jsonl

install: $(VENV)/.installed

# torch first and pinned, so that TORCH_INDEX's build of this very version wins (2.13.0+cpu is above 2.13.0).
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Causerie into $(VENV) (a minute or two, once)"
	@$(PIP) "pip>=25.3"  # which answers where a wheel is without reading it
	@$(PIP) torch==2.13.0
	@$(PIP) --editable .
	@$(BIN)/causerie build-kernel || true  # it has said why not; a server without the kernel is only slower
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build runs llm/runner/native/built *.egg-info
