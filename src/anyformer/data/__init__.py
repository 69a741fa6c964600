"""Files -> documents -> tokens -> batches. Pure functions over numpy arrays; knows no model and imports no torch."""
