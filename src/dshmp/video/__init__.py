"""Videos and images, from and to files."""
