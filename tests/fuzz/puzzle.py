"""Code whose branches a search by coverage has to find: one more for each right byte."""

from __future__ import annotations


def follow(data: bytes, answer: bytes) -> str:
    for number, right in enumerate(answer):
        if number >= len(data) or data[number] != right:
            return "refused"
    raise KeyError("the planted fault")
