"""``vggdeploy bench`` and ``compare``: latency and throughput, measured beside each other."""

from vggdeploy.system.verbs import callable_as_verb

callable_as_verb(__name__)  # `vggdeploy.bench(…)` is `vggdeploy.verbs.bench`
