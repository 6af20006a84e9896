"""A checker says what is right and what is missing, and never ends a notebook that runs to its end."""

import pytest
import torch

from llm_learn.distributed import launch_processes
from llm_learn.notebook import exercises
from llm_learn.notebook.exercises import check, exercise


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(exercises, "_CHECKERS", {})

    @exercise("double")
    def check_double(double):
        yield double(2) == 4, "double(2) should be 4"
        yield double(-1) == -2, "think of negative numbers"


def test_right_answer_is_correct(capsys):
    assert check("double", lambda x: 2 * x) is True
    assert capsys.readouterr().out == "Correct.\n"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x, "Not yet: double(2) should be 4\n"),
        (lambda x: x * x, "Not yet: think of negative numbers\n"),
        (
            lambda x: 1 / 0,
            "Not yet: your answer raised ZeroDivisionError: division by zero\n",
        ),
        (lambda: 0, "Not yet: your answer raised TypeError: "),
    ],
)
def test_wrong_answer_hears_why(capsys, answer, message):
    assert check("double", answer) is False
    assert capsys.readouterr().out.startswith(message)


def test_start_is_not_an_answer(capsys):
    def double(x):
        raise NotImplementedError

    assert check("double", double) is False
    assert capsys.readouterr().out.startswith("Not yet: replace the `raise` line")


def test_start_is_not_an_answer_in_processes_either(capsys):
    def double(x):
        raise NotImplementedError

    @exercise("double-apart")
    def checker(answer):
        yield launch_processes(lambda: answer(2)) == [4, 4], "it must double"

    assert check("double-apart", double) is False
    assert capsys.readouterr().out.startswith("Not yet: replace the `raise` line")
    assert check("double-apart", lambda x: 2 * x) is True


def test_tensors_are_verdicts_and_answers_may_be_several(capsys):
    @exercise("sum")
    def check_sum(a, b):
        yield (a + b == 3).all(), "it should be 3"

    assert check("sum", torch.tensor(1), torch.tensor(2))
    assert not check("sum", torch.tensor(1), torch.tensor(1))
    assert capsys.readouterr().out == "Correct.\nNot yet: it should be 3\n"


def test_interruption_is_not_hidden():
    def double(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("double", double)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"name is 'triple', .*exercises: double; run the"):
        check("triple", lambda x: 3 * x)


def test_nothing_registered_says_so(monkeypatch):
    monkeypatch.setattr(exercises, "_CHECKERS", {})
    with pytest.raises(ValueError, match="none yet"):
        check("double", lambda x: 2 * x)


def test_a_cell_run_again_replaces_its_checker(capsys):
    @exercise("double")
    def stricter(double):
        yield False, "never"

    assert not check("double", lambda x: 2 * x)
    assert capsys.readouterr().out == "Not yet: never\n"


@pytest.mark.parametrize("name", ["", None, lambda answer: iter(())])
def test_checker_without_a_name_is_rejected(name):
    with pytest.raises(ValueError, match=r"write the exercise's name"):
        exercise(name)
