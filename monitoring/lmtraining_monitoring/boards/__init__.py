"""The Grafana boards: fleet, job, stability, devices, operator."""

from typing import Final

from lmtraining_monitoring.boards import devices, fleet, job, operator, stability

BOARDS: Final = (fleet.BOARD, job.BOARD, stability.BOARD, devices.BOARD, operator.BOARD)

__all__ = ["BOARDS"]
