"""Attacks on a run, its files, its answers and its rewards. Scripts to be run by hand; README.md lists them."""
