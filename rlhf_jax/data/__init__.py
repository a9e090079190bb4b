"""Data: files -> records -> tokens -> batches, each step a pure function of the last."""
