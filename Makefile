# Each target installs what it needs first (tools/bootstrap says what and how), so that any of them works on a fresh
# Debian machine. ARGS goes to pytest or to the benchmark: make test ARGS="-k rename".

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test test-docker check lint format bench bench-reference bench-growth bench-docker bench-ipfs posix soak plugin clean

ARGS ?=
BIN := .venv/bin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## mount a directory as a bucket, write and read through the kernel, show the plain objects
	@tools/bootstrap run
	@tools/demo

test: ## the whole suite: unit, real MinIO, real IPFS daemons, kernel mounts, public POSIX suites, real dockerds
	@tools/bootstrap test
	@tools/suite $(ARGS)

test-docker: ## of these, the volume driver on real dockerds, alone and as a swarm, in namespaces of their own
	@tools/bootstrap test
	@tools/test -m "docker and not soak" --durations=15 $(ARGS)

check: lint ## lint, types, layers, docs and the tests that need neither a server nor the kernel
	@tools/test -m "not soak and not minio and not kernel and not docker and not ipfs" -q $(ARGS)

lint: ## formatting, ruff, mypy: what pre-commit runs
	@tools/bootstrap dev
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary

format: ## rewrite the code in the house style
	@tools/bootstrap dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: ## the benchmark suite on a MinIO of its own, beside the peers; ARGS=--quick for a first look
	@tools/bootstrap bench
	@tools/with-tools $(BIN)/python -m bench.run $(ARGS)

bench-reference: ## all of it, kept in bench/results by date and machine: at most 12 minutes, on a quiet machine
	@tools/bootstrap bench
	@tools/with-tools $(BIN)/python -m bench.run --reference $(ARGS)

bench-growth: ## cost as work grows: long directories, many open files, sparse files, many inodes
	@tools/bootstrap bench
	@tools/with-tools $(BIN)/python -m bench.run --growth $(ARGS)

bench-docker: ## how long a container waits for its volume, against a local one
	@tools/bootstrap test
	@tools/with-tools $(BIN)/python -m bench.docker $(ARGS)

bench-ipfs: ## volumes in IPFS beside MinIO: files, commits, databases, and what garbage collection leaves
	@tools/bootstrap test
	@tools/with-tools $(BIN)/python -m bench.ipfs $(ARGS)

posix: ## what pjdfstest, fsx and other judges find on s3vol, s3fs and rclone, in one run
	@tools/bootstrap bench
	@tools/with-tools $(BIN)/python -m bench.posix $(ARGS)

soak: ## the long tests: two to three hours on two cores
	@tools/bootstrap test
	@tools/test -m soak --timeout=0 $(ARGS)

plugin: ## the directory of the managed Docker plugin, in dist/plugin
	@tools/bootstrap run
	@tools/build-plugin $(ARGS)

clean: ## remove what was built here; the tools folder stays (rm -rf .cache removes that too)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find . -name __pycache__ -type d -not -path './.cache/*' -prune -exec rm -rf {} +
