"""Static perception (section 3.1): language-fused backbone, pixel decoder, masked-attention frame decoder."""
