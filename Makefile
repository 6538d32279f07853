# What one types here. `make` alone prints this list.
.DEFAULT_GOAL := help
.PHONY: help demo dev test test-long soak lint format bench bench-stream docs lock clean setup setup-dagster setup-dev

# Which data `make demo` runs on: simulated, or completejourney.
DATA ?= simulated
# How many simulated events `make bench` measures.
EVENTS ?= 1000000
BIN := .venv/bin
# dbt keeps its traces out of the project's folder and asks nobody.
export DBT_SEND_ANONYMOUS_USAGE_STATS := false

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## The whole way on a simulated shop; DATA=completejourney: on a real grocer's data
	@$(BIN)/finegrain demo --data $(DATA)

dev: setup-dagster ## Dagster's page at 127.0.0.1:3000: all assets, schedules, alerts; SHOP=shop.yml: of your shop
	@$(BIN)/finegrain dagster $(if $(SHOP),--shop $(SHOP)) $(if $(PORT),--port $(PORT))

# One worker more than there are cores: tests of services wait for much of their time.
test test-long soak: export PYTEST_XDIST_AUTO_NUM_WORKERS = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
test: setup-dev ## The tests, on all cores
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

test-long: setup-dev ## What takes minutes each: jobs, crashes and pages, kills, real shops' data
	@$(BIN)/python -m pytest -m "long and not soak" -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

soak: setup-dev ## The long proofs
	@SECONDS_SIDE_BY_SIDE=300 $(BIN)/python -m pytest -m soak --timeout 0 -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

lint: setup-dev ## ruff, mypy, who may import and read whom, sqlfluff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/check_layers.py
	$(BIN)/python scripts/describe_features.py --check
	$(BIN)/python scripts/contracts_page.py --check
	$(BIN)/sqlfluff lint models snapshots tests/singular

format: setup-dev ## Lay out Python and SQL
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/sqlfluff fix models snapshots tests/singular

bench: setup-dev ## Time by stage and model, and peak memory, at EVENTS simulated events
	@$(BIN)/python benchmarks/pipeline.py --events $(EVENTS)

bench-stream: setup-dev ## The loader of streams beside others: rates, freshness, memory, batches (needs Java 17 and Maven)
	@for what in rate freshness memory batches; do $(BIN)/python benchmarks/stream.py $$what && echo; done

docs: setup ## dbt's documentation, in target/; after `make demo`, the features' page, too
	@$(BIN)/dbt docs generate --static
	@! test -e var/demo/simulated/published/current || \
		FINEGRAIN_HOME=var/demo/simulated $(BIN)/finegrain catalog --write docs/reference/features.md

lock: setup-dev ## Resolve the dependencies again (needs uv)
	@scripts/lock

clean: ## Remove what was made here: the environment, var/, dbt's folders
	rm -rf .venv var target logs dbt_packages *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@scripts/setup

setup-dagster:
	@scripts/setup dagster

setup-dev:
	@scripts/setup dev
