"""A bundle in the form that something else takes: a Triton model repository, a small bundle, a container, a C++ project."""
