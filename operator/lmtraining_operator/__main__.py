"""`python -m lmtraining_operator`."""

from lmtraining_operator.main import main

main()
