# make run                 train the quick recipe headless: notebooks/00_start_here.ipynb
# make run DATA=folder     the same on your own images and masks; see also: lab, gallery, test, test-all, test-ray, lint, real, bench, soak, clean
PYTHON ?= python3
BIN := .venv/bin
export VITSEG_DATA := $(if $(DATA),$(if $(filter /%,$(firstword $(DATA))),,$(CURDIR)/)$(DATA))

run: .venv/lab.ok
	@$(BIN)/python tools/headless.py notebooks/00_start_here.ipynb

lab: .venv/lab.ok
	$(BIN)/jupyter lab --ip=127.0.0.1 $(LAB_ARGS) notebooks/00_start_here.ipynb

gallery: .venv/lab.ok
	@$(BIN)/python tools/headless.py --pages gallery notebooks/*.ipynb

# the tests' files lie in memory, where there is room for them: half of their time is the disk's
ROOM := $(shell test "$$(df -kP /dev/shm 2>/dev/null | awk 'END {print $$4}')" -gt 8000000 2>/dev/null && echo TMPDIR=/dev/shm)

test-ray: .venv/ray.ok
test test-all test-ray: .venv/dev.ok
	$(ROOM) $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(if $(filter test,$@),-m "not slow") $(if $(filter test-ray,$@),-m ray)

lint: .venv/dev.ok
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports && $(BIN)/nbstripout --verify notebooks/*.ipynb

real bench soak: .venv/bench.ok
	$(BIN)/python benchmarks/$@.py $(DATA) $(if $(filter soak,$@),&& $(BIN)/python benchmarks/mutate.py)

.venv/torch.ok: constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0  # first: whatever is installed later finds this build
	@touch $@

.venv/%.ok: .venv/torch.ok pyproject.toml
	@echo "Installing what '$*' needs: some minutes, without a word."
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$*]'
	@$(BIN)/python -c "import importlib.util as u, sys; sys.exit('torchvision must not be installed' if u.find_spec('torchvision') else 0)" && touch $@

clean:
	rm -rf .venv gallery build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis

.PHONY: run lab gallery test test-all test-ray lint real bench soak clean
