"""No comparison of the first edition is lost without a reason."""

from first_edition import in_record, load, lost, sources, together


def test_every_check_of_the_first_edition_ran_or_was_dropped_with_a_reason():
    assert lost(*load(), together([in_record(page) for page in sources()])) == []
