"""Weights that other programs wrote: read without running anything, recognised by keys and shapes, converted.

`files` reads a state dict, `layouts` recognises whose it is, `head` settles what stands between its linear layers, `facts`
compares it with a network, `infer` derives the spec, `convert` renames to this package's keys, `published` knows
torchvision's weights; `initial` puts them to use. `facts` needs no torch.
"""
