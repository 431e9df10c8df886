"""Measures a checkpoint: pictures, captions, answers, text, reconstruction.

``runner`` has the table of tasks; ``metrics`` has the scores; one file for each task.
"""
