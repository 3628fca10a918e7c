"""One command that tries and measures everything a GPU can show, with what is installed beside it.

`day` runs the steps one after another, each in a process of its own (`child`), and writes the file after each: a step that
crashes, hangs or exhausts the GPU ends alone, and a day that was killed goes on where it was. What a step does stands in
`steps`; `timing` has the clock that they share.
"""
