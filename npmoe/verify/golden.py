"""`npmoe.battery.golden` under the name by which it is known: golden files written and checked."""

from npmoe.battery.golden import check, dump

__all__ = ["check", "dump"]
