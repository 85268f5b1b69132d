# Thin wrappers over the commands that the README shows.
PYTHON ?= python3
VENV := .venv/bin
DEMO := data/demo
CASES ?= 5000

.PHONY: venv demo test fuzz lint bench clean

venv: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(VENV)/python -m pip install -e ".[dev]"
	touch $@

demo: venv
	$(VENV)/python -m mm_fibinet.demo.data --output $(DEMO)
	$(VENV)/python build_item_emb.py --item_info $(DEMO)/MMCTR_demo/item_info.parquet \
	    --item_feature $(DEMO)/item_feature.parquet --images $(DEMO)/item_images \
	    --output $(DEMO)/embedded/item_info.parquet
	$(VENV)/python run_expid.py --expid FiBiNET_demo
	$(VENV)/python prediction.py --expid FiBiNET_demo
	$(VENV)/python -m mm_fibinet.demo.score --data $(DEMO) --expid FiBiNET_demo

test: venv
	$(VENV)/python -m pytest tests -n 2 --dist loadfile

# make fuzz CASES=100000 runs for hours; the faults go to fuzz_faults.json.
fuzz: venv
	PYTHONPATH=.:tests $(VENV)/python -m fuzz.run --cases $(CASES)

lint: venv
	$(VENV)/ruff check --output-format concise .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

bench: venv
	$(VENV)/python benchmarks/speed.py

clean:
	rm -rf .venv checkpoints submission data/demo
