"""Prints docs/config.md:

    python -m rlhf_jax.config > docs/config.md

With a word it prints the fields that have it in their name: python -m rlhf_jax.config kl_
"""

import sys

from rlhf_jax.config import page

if __name__ == "__main__":
    print(page.text(sys.argv[1]) if len(sys.argv) > 1 else page.markdown(), end="" if len(sys.argv) == 1 else "\n")
