import pytest

from liquidmm.icons.captions import captions, plural, with_article


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("red apple", "a red apple"),
        ("owl", "an owl"),
        ("hourglass", "an hourglass"),
        ("unicorn", "a unicorn"),
        ("unamused face", "an unamused face"),
        ("umbrella", "an umbrella"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("euro banknote", "a euro banknote"),
        ("SOS button", "an SOS button"),
        ("UP! button", "an UP! button"),
        ("COOL button", "a COOL button"),
        ("B button", "a B button"),
        ("grapes", "grapes"),
        ("clinking glasses", "clinking glasses"),
        ("glass of milk", "a glass of milk"),
        ("face with tears of joy", "a face with tears of joy"),
        ("two-hump camel", "a two-hump camel"),
        ("two hearts", "two hearts"),
        ("cooked rice", "cooked rice"),
        ("octopus", "an octopus"),
        ("Santa Claus", "Santa Claus"),
        ("sun", "the sun"),
    ],
)
def test_article_fits_the_sound(name: str, expected: str) -> None:
    assert with_article(name) == expected


def test_plural_regular_and_irregular() -> None:
    names = ["red apple", "fox", "strawberry", "bus", "fish", "cactus", "mouse", "key", "grapes"]
    assert [plural(name) for name in names] == [
        "red apples", "foxes", "strawberries", "buses", "fish", "cactuses", "mice", "keys",
        "grapes",
    ]  # fmt: skip


def test_captions_name_the_style_and_start_with_the_canonical_one() -> None:
    assert captions("owl", "fluent-emoji-flat") == (
        "an owl, fluent flat style",
        "fluent flat emoji of an owl",
        "owl in fluent flat style",
        "an emoji of an owl",
    )
