"""AOTInductor: native code that is compiled on the machine that runs it, from a bundle's checked program of `torch.export`."""
