"""Training: what is done (`recipe`), how it went (`record`), and the run itself (`loop`). The first two need no torch."""

from vggdeploy.system.verbs import callable_as_verb

callable_as_verb(__name__)  # `vggdeploy.train(…)` is `vggdeploy.verbs.train`
