"""Expected results of the real Cilium, and how this library compares with them.

`python -m tests.cases` prints a line per file and exits non-zero if any answer differs.
"""
