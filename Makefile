# Every target makes what it needs: a virtual environment with the pinned set, and the package in it.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test test-all lint types docs papertown figures heads benchmark

demo: .venv/installed
	$(BIN)/livo generate "a photo of a doctor" "a bloody warrior" "a red scarf on a beach" -n 20 --compare -o demo.png

test: .venv/installed
	$(BIN)/python -m pytest -n 2

test-all: .venv/installed
	$(BIN)/python -m pytest -n 2 -m ""

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy livo

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

papertown: .venv/installed
	$(BIN)/python -m livo.papertown build

figures: .venv/installed
	$(BIN)/python -m livo.papertown figures -o docs/figures.json

benchmark: .venv/installed
	$(BIN)/livo benchmark papertown --work build/benchmark --docs docs

heads: .venv/installed
	$(BIN)/livo retrieve --fit bundled -o build/retriever
	cp build/retriever/facets/* livo/retrieval/weights/
	cp build/retriever/report.json docs/retriever.json

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[offline,dev]
	touch $@
