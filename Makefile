# The tools of the extra `dev` must be on the path: pip install -e '.[dev]'
.PHONY: check format
check:            ## exactly what CI runs
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	pytest

format:
	ruff format .
	ruff check --fix .
