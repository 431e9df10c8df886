"""Ours beside the alternatives, in one run on one machine: what `liquid bench` measures.

Contract: an alternative is run as its users run it, on the same weights and data; what can't be
measured on a machine is absent from the figures, with the reason.
"""
