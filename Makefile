# The whole door: setup, demo, up, test, check, bench. Everything is idempotent.

PYTHON := .venv/bin/python
CARGO_ENV := PATH=/usr/bin:/bin RUSTC_BOOTSTRAP=1 CARGO_UNSTABLE_SPARSE_REGISTRY=true CARGO_TARGET_DIR=$(CURDIR)/build/guest/cargo-check

.PHONY: setup demo up down test check bench docs clean

setup:
	@tools/setup

demo: setup
	@$(PYTHON) tools/demo.py

up: setup
	@.venv/bin/hutch up

down:
	@.venv/bin/hutch down

test: setup
	@tools/setup-tests
	@mkdir -p build/images && $(PYTHON) examples/web/build.py --out build/images/web.tar
	@cd guest && $(CARGO_ENV) cargo test --locked --quiet
	@HUTCH_REQUIRE_ALL=1 $(PYTHON) -m pytest tests

check: setup
	@.venv/bin/ruff check src tests tools examples guest/image
	@.venv/bin/ruff format --check src tests tools examples
	@.venv/bin/mypy
	@cd guest && $(CARGO_ENV) cargo fmt --check && $(CARGO_ENV) cargo clippy --locked --quiet --all-targets
	@$(PYTHON) tools/generate_docs.py --check

docs: setup
	@$(PYTHON) tools/generate_docs.py

bench: setup
	@.venv/bin/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@command -v podman >/dev/null || apt-get install -y -qq --no-install-recommends podman >/dev/null 2>&1 \
		|| echo "bench: podman can't be installed, so nothing is shown of it" >&2
	@$(PYTHON) tests/bench/run.py

clean:
	rm -rf .venv build
