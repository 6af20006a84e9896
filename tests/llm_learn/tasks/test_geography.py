"""Questions about cities: nothing tells the answer, and a seed decides the rest."""

import pytest

from llm_learn.tasks.geography import (
    CONTINENTS,
    DISPUTED,
    draw_questions,
    read_countries,
    read_places,
    single_token_countries,
)


@pytest.fixture(scope="module")
def places():
    return read_places()


def test_places_are_written_as_people_write_them(places):
    assert {
        ("Europe", "Paris", "France"),
        ("America", "Buenos Aires", "Argentina"),
        ("Africa", "Banjul", "the Gambia"),
        ("Asia", "Manila", "the Philippines"),
    } <= set(places)
    for _, city, country in places:
        assert "_" not in city and not set("(&.") & set(country)
        assert city[:4] not in country
    cities = {city for _, city, _ in places}
    tells_its_country, claimed, of_two_names = (
        {"Andorra", "Tunis"},
        {"Taipei"},
        {"Sarajevo"},
    )
    assert not (tells_its_country | claimed | of_two_names) & cities


def test_no_question_tells_its_answer_and_every_choice_is_of_the_continent(places):
    assert len(places) > 200 and {continent for continent, _, _ in places} == set(
        CONTINENTS
    )
    countries = {c: {land for where, _, land in places if where == c} for c in CONTINENTS}
    for (continent, city, country), question in zip(
        places, draw_questions(places, 0), strict=True
    ):
        assert question.city == city and question.choices[question.right] == country
        assert (
            len(set(question.choices)) == 4
            and set(question.choices) <= countries[continent]
        )
        assert not set(city.split()) & set(country.split())
        assert city not in DISPUTED


def test_draws_differ_only_in_the_wrong_answers_and_repeat(places):
    first, again, other = (draw_questions(places, seed) for seed in (0, 0, 1))
    assert again == first and other != first
    assert [q.city for q in other] == [q.city for q in first]
    right = [q.right for q in other]
    assert all(right.count(k) > len(right) / 8 for k in range(4))


@pytest.mark.parametrize("number", [1, 3])
def test_a_continent_needs_four_countries(number):
    places = [("Asia", f"city {k}", f"country {k}") for k in range(number)]
    with pytest.raises(
        ValueError, match=f"places has {number} countries in Asia: a question needs 4"
    ):
        draw_questions(places, 0)


def test_every_continent_has_its_countries_by_names_that_can_be_written():
    countries = read_countries()
    assert set(countries) == set(CONTINENTS)
    for same_names in countries.values():
        names = [name for same in same_names for name in same]
        assert len(set(names)) == len(names) > 40
        assert not set("(&") & set("".join(names))
    flat = {c: {name for same in names for name in same} for c, names in countries.items()}
    assert {"the United Kingdom", "Iceland", "Russia"} <= flat["Europe"]
    assert {"Madagascar", "the Gambia", "Niger"} <= flat["Africa"]
    assert {"South Korea", "Turkey", "Russia"} <= flat["Asia"]
    assert {"the Bahamas", "Cuba"} <= flat["America"]
    assert "Spain" not in flat["Africa"] and "the United States" in flat["America"]


def test_countries_of_one_token_are_on_one_continent():
    every_token = single_token_countries(lambda text: [1])
    names = [name for names in every_token.values() for name in names]
    assert len(set(names)) == len(names)
    assert "Russia" not in names and "Turkey" not in names and "Kenya" in names
    asked = []
    none = single_token_countries(lambda text: asked.append(text) or [1, 2])
    assert not any(none.values()) and " Kenya" in asked
