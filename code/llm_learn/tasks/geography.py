"""Questions about countries and their cities, from the time zone database."""

import random
from collections.abc import Callable, Sequence
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
# Kept apart, since questions about cities are written without.
ALSO_WITH_ARTICLE = {
    "Bahamas",
    "Cayman Islands",
    "Central African Rep.",
    "Czech Republic",
    "Isle of Man",
    "Åland Islands",
}
# Names that the tables abbreviate, or that also have other forms in texts.
OTHER_NAMES = {
    "Bosnia & Herzegovina": ("Bosnia and Herzegovina", "Bosnia"),
    "Britain (UK)": ("the United Kingdom", "the UK", "England", "Scotland", "Britain"),
    "Central African Rep.": ("the Central African Republic",),
    "Congo (Dem. Rep.)": (
        "the Democratic Republic of the Congo",
        "the Democratic Republic of Congo",
        "the DRC",
    ),
    "Congo (Rep.)": (
        "the Republic of the Congo",
        "the Republic of Congo",
        "Congo",
        "the Congo",
    ),
    "Côte d’Ivoire": ("Côte d’Ivoire", "Côte d'Ivoire", "Ivory Coast", "the Ivory Coast"),
    "Czech Republic": ("the Czech Republic", "Czechia"),
    "Eswatini (Swaziland)": ("Eswatini", "Swaziland"),
    "Gambia": ("the Gambia", "The Gambia", "Gambia"),
    "Korea (North)": ("North Korea",),
    "Korea (South)": ("South Korea", "the Republic of Korea", "Korea"),
    "Myanmar (Burma)": ("Myanmar", "Burma"),
    "Netherlands": ("the Netherlands", "The Netherlands", "Holland"),
    "Trinidad & Tobago": ("Trinidad and Tobago",),
    "United States": ("the United States", "the USA", "the US", "the U.S", "USA"),
}
# Countries whose zones are named after an ocean, or after another continent.
ELSEWHERE = (
    *(
        ("Africa", name)
        for name in ("Cape Verde", "Comoros", "Madagascar", "Mauritius", "Seychelles")
    ),
    *(("Asia", name) for name in ("Maldives", "Turkey")),
    ("Europe", "Iceland"),
)
DISPUTED = {"Famagusta", "Gaza", "Hebron", "Jerusalem", "Simferopol", "Taipei"}


@dataclass(frozen=True)
class Question:
    """Which country is the city in? The correct one is among the choices."""

    city: str
    choices: tuple[str, ...]
    right: int  # its index


def _read_tables() -> list[list[list[str]]]:
    """Fields of the lines of two tables: codes and names of countries; codes, places and names of zones."""
    folder = files("tzdata") / "zoneinfo"
    return [
        [
            line.split("\t")
            for line in (folder / name).read_text(encoding="utf-8").splitlines()
            if not line.startswith("#")
        ]
        for name in ("iso3166.tab", "zone.tab")
    ]


def read_countries() -> dict[str, list[tuple[str, ...]]]:
    """Countries of each continent, each with the names that a text may use for it.

    Needs `tzdata`, whose tables are in the public domain: a country belongs where it has a time zone, and so a few are
    on two continents, and territories with a zone of their own are among them. Names that take an article have it.
    """
    codes, zones = _read_tables()
    names, found = dict(codes), {continent: {} for continent in CONTINENTS}
    places = [(zone.split("/")[0], names[code]) for code, _, zone, *_ in zones]
    for continent, name in [*places, *ELSEWHERE]:
        plain = name in OTHER_NAMES or not set("(&.") & set(name)
        enclave = (continent, name) == ("Africa", "Spain")
        if continent in found and plain and not enclave:
            article = "the " if name in WITH_ARTICLE | ALSO_WITH_ARTICLE else ""
            found[continent][name] = OTHER_NAMES.get(name, (article + name,))
    return {
        continent: [countries[name] for name in sorted(countries)]
        for continent, countries in found.items()
    }


def single_token_countries(encode: Callable[[str], list[int]]) -> dict[str, list[str]]:
    """Countries on one continent only whose name is one token inside a text, by continent.

    Args:
        encode: from a text to its token IDs; gets the name after a space.
    """
    countries = read_countries()
    return {
        continent: [
            names[0]
            for names in countries[continent]
            if len(encode(f" {names[0]}")) == 1
            and not any(names in countries[c] for c in CONTINENTS if c != continent)
        ]
        for continent in CONTINENTS
    }


def read_places() -> list[tuple[str, str, str]]:
    """Continent, city and country of zones of the time zone database, where the country's name is plain.

    Needs `tzdata`, whose tables are in the public domain. Cities whose name reveals the country, or that several
    countries claim, are left out.
    """
    codes, zones = _read_tables()
    names, places = dict(codes), []
    for code, _, zone, *_ in zones:
        continent, *_, city = zone.split("/")
        city, country = city.replace("_", " "), names[code]
        known = continent in CONTINENTS and city not in DISPUTED
        # A city whose name contains its country is no question: Tunis, Mexico City.
        told = city[:4] in country or set(city.split()) & set(country.split())
        if known and not told and not set("(&.") & set(country):
            article = "the " if country in WITH_ARTICLE else ""
            places.append((continent, city, article + country))
    return places


def draw_questions(places: Sequence[tuple[str, str, str]], seed: int) -> list[Question]:
    """A question for each place, with three other countries of its continent.

    Args:
        places: continent, city and country; a continent needs four countries.
        seed: decides the other countries and the order.
    """
    rng, questions = random.Random(seed), []
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
        choices = [*rng.sample(others, 3), country]
        rng.shuffle(choices)
        questions.append(Question(city, tuple(choices), choices.index(country)))
    return questions
