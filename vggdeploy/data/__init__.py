"""Data sets: what they are (`specs`), where their images come from (`sources`), and ready splits (`loaders`).

`folder` reads one's own images. Torch-free but for `torchvision_source` and `cifar_source`, which are imported only for
the data sets that torchvision knows.
"""
