"""A bundle in the form that something else takes: a Triton repository, a small bundle, a container, C++, a web page."""
