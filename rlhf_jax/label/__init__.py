"""People who rank completions, or write demonstrations, on a page that this machine serves."""
