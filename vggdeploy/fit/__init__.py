"""``vggdeploy fit``: from labelled pictures to the fastest proven network for them, in one command and one budget of time."""
