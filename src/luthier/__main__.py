"""python -m luthier."""

from luthier.cli import main

main()
