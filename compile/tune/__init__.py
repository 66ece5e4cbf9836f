"""Tuning: schedules measured on the device instead of estimated. ``intcert tune`` is its command."""

from intcert.compile.tune.session import Progress, Report, tune

__all__ = ["Progress", "Report", "tune"]
