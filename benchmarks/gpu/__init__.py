"""What training and prediction cost on a GPU, measured in the few minutes that one is there."""
