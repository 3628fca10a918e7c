"""``vggdeploy verify --fleet``: the golden pair on processors and in browsers that are not this machine's."""
