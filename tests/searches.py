"""How long hypothesis searches for a counterexample: by the profile, in proportion to what an example costs."""

from hypothesis import HealthCheck, settings

FAST, THOROUGH = 50, 1_000  # examples of a test that says nothing else

settings.register_profile("fast", max_examples=FAST, deadline=None)
settings.register_profile("thorough", max_examples=THOROUGH, deadline=None)


def search(examples: int) -> settings:
    """Settings of a test that wants so many examples in the fast profile; `--hypothesis-profile thorough` scales it.

    Fixtures are shared by the examples, so a test writes into what it makes itself.
    """
    scaled = max(1, examples * settings().max_examples // FAST)
    return settings(max_examples=scaled, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
