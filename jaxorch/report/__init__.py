"""What a plan says of itself: the report behind `jaxorch.explain`."""

from jaxorch.report.describe import describe, nothing_planned
from jaxorch.report.model import KernelLine, LeftLine, Report, RivalLine

__all__ = ["KernelLine", "LeftLine", "Report", "RivalLine", "describe", "nothing_planned"]
