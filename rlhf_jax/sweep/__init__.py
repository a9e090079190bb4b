"""Sweeps: the arms of an experiment file (arms, grid), the store of their shared stages (store), and the ways to run
them (sequential, workers, vectorized, cluster)."""
