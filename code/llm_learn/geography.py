"""Questions about cities and countries, made from the time zone database."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

CONTINENTS = ("Africa", "America", "Asia", "Europe")
WITH_ARTICLE = {
    "Dominican Republic",
    "Gambia",
    "Netherlands",
    "Philippines",
    "United Arab Emirates",
    "United States",
}
DISPUTED = {"Famagusta", "Gaza", "Hebron", "Jerusalem", "Simferopol", "Taipei"}


@dataclass(frozen=True)
class Question:
    """Which country is the city in? The right one stands somewhere among the choices."""

    city: str
    choices: tuple[str, ...]
    right: int  # its index


def read_places() -> list[tuple[str, str, str]]:
    """Continent, city and country of zones of the time zone database, where the country's name is plain.

    Needs `tzdata`, whose tables are in the public domain. Left out are cities whose name tells the country, and those
    that are claimed by several.
    """
    folder = files("tzdata") / "zoneinfo"
    tables = [
        [
            line.split("\t")
            for line in (folder / name).read_text(encoding="utf-8").splitlines()
            if not line.startswith("#")
        ]
        for name in ("iso3166.tab", "zone.tab")
    ]
    names, places = dict(tables[0]), []
    for code, _, zone, *_ in tables[1]:
        continent, *_, city = zone.split("/")
        city, country = city.replace("_", " "), names[code]
        known = continent in CONTINENTS and city not in DISPUTED
        # What one can read off the name is no question: Tunis, Mexico City.
        told = city[:4] in country or set(city.split()) & set(country.split())
        if known and not told and not set("(&.") & set(country):
            article = "the " if country in WITH_ARTICLE else ""
            places.append((continent, city, article + country))
    return places


def draw_questions(places: Sequence[tuple[str, str, str]], seed: int) -> list[Question]:
    """A question for each place, with three wrong countries of its continent.

    Args:
        places: continent, city and country; a continent needs four countries.
        seed: decides the wrong countries and the order.
    """
    chance, questions = random.Random(seed), []
    countries = {
        c: sorted({land for where, _, land in places if where == c}) for c in CONTINENTS
    }
    for continent, lands in countries.items():
        if 0 < len(lands) < 4:
            raise ValueError(
                f"places has {len(lands)} countries in {continent}: a question needs 4"
            )
    for continent, city, country in places:
        others = [other for other in countries[continent] if other != country]
        choices = [*chance.sample(others, 3), country]
        chance.shuffle(choices)
        questions.append(Question(city, tuple(choices), choices.index(country)))
    return questions
