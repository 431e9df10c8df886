"""Training: the loop for the language model and the one for the image tokenizer.

Contract: training knows the data and the model, never the generation engine; what is to be shown
along the way is handed in as a function.
"""
