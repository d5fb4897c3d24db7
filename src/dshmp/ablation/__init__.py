"""`dshmp ablate`: the rows of the paper's tables trained with several seeds, compared, and written up."""
