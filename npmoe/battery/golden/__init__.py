"""Golden cases: files of weights, inputs and right answers, and the judgement of what another program answered."""

from npmoe.battery.golden.judging import Checked, check
from npmoe.battery.golden.manifest import SCHEMA
from npmoe.battery.golden.writing import dump

__all__ = ["SCHEMA", "Checked", "check", "dump"]
