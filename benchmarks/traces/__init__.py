"""Traces that are shipped, and the program that makes them."""
