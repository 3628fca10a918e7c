"""Data sets: what they are (`specs`), where their images come from (`sources`), and ready splits (`loaders`).

Torch-free but for `torchvision_source`, which is imported only for the data sets that torchvision knows.
"""
