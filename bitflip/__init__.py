"""Single-bit-flip fault injection for image classifiers: what happens when one bit flips?"""

import logging

logging.getLogger("bitflip").addHandler(logging.NullHandler())  # what it says is for whoever listens

__version__ = "0.1.0"
