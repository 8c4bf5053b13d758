"""`python -m npmoe.verify`: the command, which stands in `npmoe.battery`, under the name by which it is known."""

import sys

from npmoe.battery.command import main

if __name__ == "__main__":
    sys.exit(main())
