"""What backbones and codecs share."""
