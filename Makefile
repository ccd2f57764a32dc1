# make run    boot the default kernel and show what fork() does to a huge pfnmap
# make test   every test, those that boot kernels included
# make check  lint, types and the tests that need no QEMU
# make bench  ratios, each measured in one run
# make facts  measure every stock kernel, write what the documents say of them, show what changed (20 minutes)
# make mutants     kernels that are broken on purpose, each with the claim that must notice it (half an hour)
# make long-tests  a bisection and a series of patches, on kernels built for real (half an hour)
.PHONY: run test check lint types host-tests bench facts mutants long-tests setup test-setup clean
PYTHON := .venv/bin/python

run: setup
	@.venv/bin/hugepfn run fork

test: test-setup
	$(PYTHON) -m pytest -q tests guest_tests

check: test-setup
	@$(MAKE) --no-print-directory --output-sync=target --keep-going -j 2 lint types host-tests

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types:
	.venv/bin/mypy

host-tests:
	$(PYTHON) -m pytest -q tests --ignore tests/vm -n 2 --dist loadfile

bench: setup
	@.venv/bin/hugepfn bench

facts: setup
	@$(PYTHON) -m harness.campaign.facts $(FACTS)

mutants: test-setup
	$(PYTHON) tests/mutants/kill.py

long-tests: test-setup
	$(PYTHON) -m pytest -q -m long tests/vm

setup:
	@scripts/setup

test-setup:
	@scripts/setup tests

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
