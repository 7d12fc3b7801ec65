"""What a run is asked to do: hyperparameters, and reading them."""
