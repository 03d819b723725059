"""A step that is scored and lies outside the window is warned of."""


def test_a_moment_whose_nearest_checkpoint_lies_outside_the_window_is_warned_of(traced, capsys):
    """The smoke run keeps steps 20 and 32: the middle of [21,31] is as near to either."""
    inside, context = traced("estimator=loss", "intervention.window=[21,43]")
    assert inside.traced.steps == (32,) and not context.store.warnings
    outside, context = traced("estimator=loss", "intervention.window=[21,31]")
    assert outside.traced.steps == (20,)
    sentence = (
        "estimator.checkpoint=window_middle is step 20, the base run's nearest checkpoint, which "
        "lies outside the window [21,31]"
    )
    assert capsys.readouterr().err == f"warning: {sentence}\n"
    assert context.store.warnings == {outside.traced.fingerprint: sentence}
    told, context = traced(
        "estimator=loss", "intervention.window=[21,31]", "estimator.checkpoint=20"
    )
    assert told.traced.fingerprint == outside.traced.fingerprint and not context.store.warnings
