"""``vggdeploy verify``: variants are proven against the FP32 PyTorch reference."""

from vggdeploy.system.verbs import callable_as_verb

callable_as_verb(__name__)  # `vggdeploy.verify(…)` is `vggdeploy.verbs.verify`
