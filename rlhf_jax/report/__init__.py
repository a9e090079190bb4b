"""Reports of runs and sweeps: tables, figures, verdicts on claims, and the page of all sweeps."""
