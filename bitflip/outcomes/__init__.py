"""What happened to each image, and what that adds up to."""
