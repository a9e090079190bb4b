"""Plans: a config's programs, compiled ahead of time for a topology that need not be at hand. See planner.py."""
