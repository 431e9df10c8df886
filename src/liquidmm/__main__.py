"""`python -m liquidmm` is the command `liquid`: what `torchrun -m` needs."""

from liquidmm.cli import main

main()
