"""Sweeps: the arms of an experiment file (arms, grid), what they share (store), and who runs them
(sequential, workers, vectorized, cluster)."""
