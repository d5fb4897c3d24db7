"""`python -m dshmp`, which launchers of several processes need."""

from dshmp.cli import main

main()
