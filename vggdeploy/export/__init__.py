"""From a checkpoint's model to files that need no Python class: one module per format."""

from vggdeploy.system.verbs import callable_as_verb

callable_as_verb(__name__)  # `vggdeploy.export(…)` is `vggdeploy.verbs.export`
