"""Evaluation of any checkpoint: running tasks, reporting results, and tasks for any data."""
