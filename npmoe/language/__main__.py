"""`python -m npmoe.language`."""

import sys

from npmoe.language.command import main

if __name__ == "__main__":
    sys.exit(main())
