# make run    boot the default kernel and show what fork() does to a huge pfnmap
# make test   run every test, including those that boot kernels
# make check  run the linter, the type checker and the tests that need no QEMU
# make docs   build the site from docs/ (build/docs/index.html); warnings are errors, and no network is needed
# make pictures  draw the terminal of README.md anew (docs/pictures/run.svg)
# make bench  measure performance as ratios; both sides of a ratio come from the same run
# make facts  measure every stock kernel, update the documents, and show what changed (20 minutes)
# make kernel-functions  look the kernel functions of the claims up in Debian's sources (downloads 150 MB for each series)
# make mutants     build kernels that are broken on purpose, and check that the claim for each one fails (half an hour)
# make mutation    break the Python code in 200 places, one at a time, and count which the tests notice (half an hour)
# make fuzz     give every reader of what a guest sends inputs that a coverage-guided fuzzer makes (ten minutes)
# make faults   kill, stop, starve and corrupt all that hugepfn works with, 300 times, and look at how it ends (half an hour)
# make bisect-simulation  bisect 20,000 histories in numbers beside git-bayesect and git bisect; writes docs/bisection.md (half an hour)
# make bisect-stock  find the stock kernels between which known bugs were mended; writes docs/bisected.md (twenty minutes)
# make fixes       build kernels with the patches in fixes/, and see what each mends and what else it changes; writes docs/fixes.md (two hours)
# make explore-mutants  let the explorer look for the mutants, five minutes each (two hours)
# make container-steps  run the steps of the Containerfile in a debootstrap; needs root, downloads 500 MB
# make long-tests  run a bisection and a patch series with kernels that are really built (half an hour)
# make compat      test QEMU 7.2 to 11, four file systems and two Pythons; writes docs/compatibility.md (root; twenty minutes)
.PHONY: run test check lint types host-tests docs pictures bench facts kernel-functions mutants mutation fuzz faults bisect-simulation bisect-stock fixes explore-mutants long-tests compat container-steps setup test-setup clean
PYTHON := .venv/bin/python
# A file or pipe that was never closed is an error. Python reports it when the object is garbage-collected.
LEAKS := -W error::ResourceWarning -W error::pytest.PytestUnraisableExceptionWarning

run: setup
	@.venv/bin/hugepfn run fork

test: test-setup
	$(PYTHON) -m pytest -q tests guest_tests -n 2 --dist worksteal $(LEAKS)

check: test-setup
	@$(MAKE) --no-print-directory --output-sync=target --keep-going -j 2 lint types host-tests

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types:
	.venv/bin/mypy

host-tests:
	$(PYTHON) -m pytest -q tests --ignore tests/vm -n 2 --dist loadfile $(LEAKS)

docs: test-setup
	@$(PYTHON) -m sphinx -b html -W --keep-going -q docs build/docs
	@echo "docs: build/docs/index.html"

pictures: test-setup
	PYTHONPATH=. $(PYTHON) docs/terminal_picture.py

bench: setup
	@.venv/bin/hugepfn bench

facts: setup
	@$(PYTHON) -m harness.campaign.facts $(FACTS)

kernel-functions: test-setup
	PYTHONPATH=. $(PYTHON) tests/kernel_source.py $(SOURCES)

mutants: test-setup
	$(PYTHON) tests/mutants/kill.py

mutation: test-setup
	$(PYTHON) tests/mutation/sample.py $(MUTATION)

fuzz: test-setup
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	PYTHONPATH=. $(PYTHON) tests/fuzz/run.py $(FUZZ)

faults: test-setup
	PYTHONPATH=. $(PYTHON) tests/faults/campaign.py $(FAULTS)

bisect-simulation: test-setup
	@$(PYTHON) -c 'import git_bayesect' 2>/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[bayesect]'
	PYTHONPATH=. $(PYTHON) tests/bisection/simulation.py --write $(SIMULATION)

long-tests: test-setup
	$(PYTHON) -m pytest -q -m long tests/vm

compat: test-setup
	PYTHONPATH=. $(PYTHON) tests/compat/compat.py --write

bisect-stock: test-setup
	PYTHONPATH=. $(PYTHON) tests/bisection/stock.py --write $(STOCK)

fixes: setup
	PYTHONPATH=. $(PYTHON) tests/fixes/measure.py --write $(FIXES)

explore-mutants: setup
	PYTHONPATH=. $(PYTHON) tests/mutants/explore.py $(EXPLORE)

container-steps: setup
	PYTHONPATH=. $(PYTHON) tests/container_steps.py

setup:
	@scripts/setup

test-setup:
	@scripts/setup tests

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
