"""Generation: from a prompt to pictures, text or both.

Contract, each file using only those after it: `conversation` remembers turns, `liquid` is what
users hold, `engine` turns requests of ids into codes and ids, `decode` runs the language model step
by step, `sampling` turns logits into one drawn id. `pictures` and `words` turn codes and ids into
what people look at.
"""
