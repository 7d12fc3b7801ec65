"""Intervals, rates, and how many faults are enough."""
