"""Flip one bit of one neuron per image in each layer; as main.py, with result files named ``neuron_...``.

python neuron.py --dataset digits --output-path output
python neuron.py --layer-type ReLU --bit-flip-pos 1     # the top exponent bit, in every ReLU's output
"""

import sys

from bitflip.commands.entry import main

if __name__ == "__main__":
    sys.exit(main(target="neuron", prefix="neuron_"))
