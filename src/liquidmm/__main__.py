"""`python -m liquidmm` runs the `liquid` command, which `torchrun -m` needs."""

from liquidmm.cli import main

main()
