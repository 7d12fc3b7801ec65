"""Flip one bit of one neuron per image in each layer of a classifier, and count how often it changes its mind.

python main.py --dataset digits --output-path output    # the shipped network, nothing to download
python main.py --detailed-log                           # VGG-19-BN on CIFAR-10, /input -> /output
seed=7 layer_type=Conv2d,Linear python main.py          # hyperparameters from the environment
"""

import sys

from bitflip.commands.entry import main

if __name__ == "__main__":
    sys.exit(main(target="neuron", prefix=""))
