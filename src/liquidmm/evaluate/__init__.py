"""Evaluation of any checkpoint: running tasks, results, and tasks for any data."""
