"""`npmoe.convert.known` under the name by which it is known: whose tensor names are read without a word."""

from npmoe.convert.known import LAYOUTS

__all__ = ["LAYOUTS"]
