"""The commands of ``python -m bitflip``, a module each."""
