"""Figures that the docs quote, from scripts that anyone can run again."""
