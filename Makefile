# The tools of the extra `dev` must be on the path: pip install -e '.[dev]'
.PHONY: check types tests format
check:            ## exactly what CI runs
	ruff format --check .
	ruff check .
	lint-imports
	$(MAKE) --jobs=2 types tests

types:            ## one core, two minutes: beside the tests
	mypy

tests:
	pytest

format:
	ruff format .
	ruff check --fix .
