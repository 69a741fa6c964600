"""How many generated examples a property is tried on."""

import os

from hypothesis import settings

IS_FUZZ = "HYPOTHESIS_PROFILE" in os.environ
few_examples = settings() if IS_FUZZ else settings(max_examples=10)
"""A slice in `make test`; with HYPOTHESIS_PROFILE=fuzz as many as the profile says."""
