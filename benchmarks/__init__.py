"""Measurements behind every claim about speed; each compares with something people use, in one run."""
