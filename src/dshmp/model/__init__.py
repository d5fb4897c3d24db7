"""The network (section 3 of the paper): text, frames, trajectories, motion, masks."""
