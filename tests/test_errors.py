"""How commands end: a sentence and an exit status."""

import pytest

from rlhf_jax.runtime.errors import InputError, as_command


@pytest.mark.parametrize(
    "raised, status, sentence",
    [
        (InputError("data.jsonl, line 3: no prompt"), 2, "rlhf_jax.x: data.jsonl, line 3: no prompt\n"),
        (KeyboardInterrupt(), 130, "rlhf_jax.x: stopped; nothing was written\n"),
        (KeyboardInterrupt("stopped at step 3"), 130, "rlhf_jax.x: stopped at step 3\n"),
    ],
)
def test_what_ends_a_command_is_a_sentence_and_a_status(raised, status, sentence, capsys):
    @as_command("rlhf_jax.x", stopped="stopped; nothing was written")
    def main(arguments=None):
        raise raised

    assert main(["--x"]) == status
    assert capsys.readouterr() == ("", sentence)


def test_a_command_that_works_has_the_status_that_it_returns_and_errors_of_ours_are_not_hidden():
    assert as_command("x")(lambda: None)() == 0 and as_command("x")(lambda: 1)() == 1
    with pytest.raises(ZeroDivisionError):
        as_command("x")(lambda: 1 / 0)()
