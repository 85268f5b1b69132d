# Thin wrappers over the commands that the README shows.
PYTHON ?= python3
VENV := .venv/bin
DEMO := data/demo
CASES ?= 5000
GPU ?= -1
RAW ?= Taobao-MM
LOCK ?=
UV ?= uv

.PHONY: venv demo microlens taobao_mm test fuzz lint bench docs dist lock lowest clean

# make venv LOCK=1 installs exactly what requirements/ci.txt says, for Python 3.11 on Linux; without it, the newest releases.
venv: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
ifeq ($(LOCK),)
	$(VENV)/python -m pip install -e ".[dev]"
else
	$(VENV)/python -m pip install --require-hashes --no-deps -r requirements/ci.txt
	$(VENV)/python -m pip install --no-deps --no-build-isolation -e .
	$(VENV)/python -m pip check
endif
	touch $@

demo: venv
	$(VENV)/python -m mm_fibinet.demo.data --output $(DEMO)
	$(VENV)/python build_item_emb.py --item_info $(DEMO)/MMCTR_demo/item_info.parquet \
	    --item_feature $(DEMO)/item_feature.parquet --images $(DEMO)/item_images \
	    --output $(DEMO)/embedded/item_info.parquet
	$(VENV)/python run_expid.py --expid FiBiNET_demo
	$(VENV)/python prediction.py --expid FiBiNET_demo
	$(VENV)/python -m mm_fibinet.demo.score --data $(DEMO) --expid FiBiNET_demo

# The files of data/README.md to a score on valid and a submission: make microlens EXPID=DIN_MicroLens_1M_x1 GPU=0
microlens: EXPID ?= DIN_att_emb_rms_MicroLens_1M_x1
microlens: venv
	$(VENV)/python -m mm_fibinet check data/MicroLens_1M_x1
	$(VENV)/python run_expid.py --expid $(EXPID) --gpu $(GPU)
	$(VENV)/python prediction.py --expid $(EXPID) --gpu $(GPU)

# Taobao-MM as it was downloaded, RAW, to a score on test: make taobao_mm RAW=../Taobao-MM GPU=0
taobao_mm: EXPID ?= MUSE_Taobao_MM
taobao_mm: venv data/taobao_mm/dataset_config.yaml
	$(VENV)/python run_expid.py --expid $(EXPID) --gpu $(GPU)
	$(VENV)/python prediction.py --expid $(EXPID) --gpu $(GPU) --labels data/taobao_mm/test_labels.parquet

data/taobao_mm/dataset_config.yaml: | venv
	$(VENV)/python build_dataset.py --recipe taobao_mm --data_root $(RAW) --out data/taobao_mm

test: venv
	$(VENV)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

# make fuzz CASES=100000 runs for hours; the faults go to fuzz_faults.json.
fuzz: venv
	PYTHONPATH=.:tests $(VENV)/python -m fuzz.run --cases $(CASES)

lint: venv
	$(VENV)/ruff check --output-format concise .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

bench: venv
	$(VENV)/python benchmarks/speed.py

# The documentation as a site in site/; site/index.html opens without a server.
docs: venv
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(VENV)/mkdocs build

# Files in a wheel are dated as the commit is, so that the same commit gives the same bytes.
dist: venv
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(VENV)/python -m build

# The releases that make venv LOCK=1 installs, moved to the newest ones; wants uv (pip install uv).
lock:
	$(UV) pip compile pyproject.toml --extra dev --python-version 3.11 --python-platform x86_64-manylinux_2_28 --upgrade \
	    --generate-hashes --no-annotate --custom-compile-command "make lock" --output-file requirements/ci.txt

# The lowest releases that pyproject.toml admits are those that tests/replicas/server.txt tries; wants uv, too.
lowest:
	$(PYTHON) tests/replicas/lowest.py --uv $(UV)

clean:
	rm -rf .venv checkpoints submission site dist data/demo
