"""What is answered: the data, how people see it, how it lies on disk."""
