# make demo: the whole product on a demo model.  make test: everything it claims, tested.
# Both set up all they need: .venv, pinned Python packages, and system packages where apt is allowed.
PYTHON = .venv/bin/python
FOLDERS = sdk targets converters harness reports
CHECKED = $(FOLDERS) tests benchmarks

.PHONY: demo test check dev bench golden size clean

demo:
	@scripts/setup.sh demo
	$(PYTHON) -m edgesdk build --target host
	$(PYTHON) -m edgesdk build --target rpi5 || { test $$? -eq 4 && echo "demo: no emulated board here (see above); this machine was measured"; }
	@echo "The reports lie in .edgesdk/builds/*/report/report.html"

dev:
	@scripts/setup.sh test

test: dev
	$(PYTHON) -m pytest -q

check: dev
	.venv/bin/ruff check $(CHECKED)
	.venv/bin/mypy

bench: dev
	for name in demo sizes suite compression neon neon_decoder boards; do $(PYTHON) benchmarks/$$name.py || exit 1; done
	$(PYTHON) benchmarks/_page.py

golden: dev
	EDGESDK_GOLDEN=1 $(PYTHON) -m pytest -q tests -k golden

size:
	@for folder in $(CHECKED); do printf '%-12s' $$folder; git ls-files $$folder | grep -E '\.(py|c|h)$$' | xargs cat | wc -l; done

clean:
	rm -rf build out report .mypy_cache .ruff_cache .pytest_cache .hypothesis
