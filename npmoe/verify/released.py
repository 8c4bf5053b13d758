"""`npmoe.battery.released` under the name by which it is known: released models held against the closed forms."""

from npmoe.battery.released import collapse, findings

__all__ = ["collapse", "findings"]
