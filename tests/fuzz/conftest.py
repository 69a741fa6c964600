"""Properties on generated input. `make test` tries few examples of each, the same ones every time.

HYPOTHESIS_PROFILE=fuzz .venv/bin/python -m pytest tests/fuzz    1,000 of each (or $ANYFORMER_FUZZ), new ones every time

A failure prints the smallest example and a line `@reproduce_failure` that repeats it.
"""
