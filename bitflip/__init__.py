"""Single-bit-flip fault injection for image classifiers: what happens when one bit flips?"""

__version__ = "0.1.0"
