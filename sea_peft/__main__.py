"""`python -m sea_peft`: the command line where `seapeft` is not on the path."""

from sea_peft.cli import main

main()
