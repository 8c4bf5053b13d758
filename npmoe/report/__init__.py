"""Results to one HTML page and its figures. This room computes no statistics and knows no model and no paper."""

from npmoe.report.page import write_report

__all__ = ["write_report"]
