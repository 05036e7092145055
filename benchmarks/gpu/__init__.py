"""Speed of training and prediction on a GPU that is available for only a few minutes."""
