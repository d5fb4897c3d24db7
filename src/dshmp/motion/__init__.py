"""Motion: trajectories (Eq. 3), hierarchical motion perception (Eq. 4-7), motion decoder (Eq. 2)."""
