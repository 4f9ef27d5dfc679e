"""The commands of `python -m kit`: list, copy, compare, report."""
