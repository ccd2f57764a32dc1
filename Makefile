# make run    boot the default kernel and show what fork() does to a huge pfnmap
# make test   every test, those that boot kernels included
# make check  lint, types and the tests that need no QEMU
# make bench  ratios, each measured in one run
# make facts  measure every stock kernel, write what the documents say of them, show what changed (20 minutes)
# make mutants     kernels that are broken on purpose, each with the claim that must notice it (half an hour)
# make container-steps  the Containerfile's steps in a debootstrap: needs root, downloads 500 MB
# make long-tests  a bisection and a series of patches, on kernels built for real (half an hour)
# make compat      QEMU 7.2 to 11, four file systems, two Pythons; writes docs/compatibility.md (root; twenty minutes)
.PHONY: run test check lint types host-tests bench facts mutants long-tests compat container-steps setup test-setup clean
PYTHON := .venv/bin/python
# A file or pipe that nobody closed is an error; pytest hears of it when it is collected.
LEAKS := -W error::ResourceWarning -W error::pytest.PytestUnraisableExceptionWarning

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
	$(PYTHON) -m pytest -q tests --ignore tests/vm -n 2 --dist loadfile $(LEAKS)

bench: setup
	@.venv/bin/hugepfn bench

facts: setup
	@$(PYTHON) -m harness.campaign.facts $(FACTS)

mutants: test-setup
	$(PYTHON) tests/mutants/kill.py

long-tests: test-setup
	$(PYTHON) -m pytest -q -m long tests/vm

compat: test-setup
	PYTHONPATH=. $(PYTHON) tests/compat/compat.py --write

container-steps: setup
	PYTHONPATH=. $(PYTHON) tests/container_steps.py

setup:
	@scripts/setup

test-setup:
	@scripts/setup tests

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
