"""Classifiers: loading them, where they run, their layers, and the bits of their values."""
