"""Flip one bit of one weight per batch in each layer that has a weight.

python weight.py --dataset digits --output-path output
python weight.py --layer-type Conv2d --batch-size 64    # one flip for every 64 images
"""

import sys

from bitflip.commands.entry import main

if __name__ == "__main__":
    sys.exit(main(target="weight", prefix="weight_"))
