"""Other people's weights as our layers, and back."""
