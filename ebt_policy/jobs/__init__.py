"""What may be trained, each with its data and what shows how good it is."""
