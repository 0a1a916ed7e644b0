"""Picks the worker for each request: filters, scorers and a picker, over the instances that discovery knows."""
