"""What flips: sampled or listed, as values."""
