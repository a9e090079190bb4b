"""Benchmarks by EleutherAI's lm-eval, with our models as its backend."""
