"""Section 3.1: from the sentence to its static and motion cues."""
