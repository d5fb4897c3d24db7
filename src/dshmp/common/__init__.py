"""What all parts use, and knows none of them."""
