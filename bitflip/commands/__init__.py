"""What ``python -m bitflip COMMAND`` can do: one module per command."""
