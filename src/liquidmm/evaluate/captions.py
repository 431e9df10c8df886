"""Captions: does greedy ``describe`` name the concept and the style of a real icon?

The rule, in words: both texts are lower-cased, punctuation becomes a blank, and articles and the
word "style" are dropped. Of the caption only what follows a colon counts ("a bird: duck"). Of all
known concept names that stand in it as whole, consecutive words the longest counts (of equally long
ones the first). The caption is right if that name is the name of the icon's concept. So "a green
apple" does not name "apple", and a synonym is wrong. The style is judged by the same rule among the
styles' names.
"""

from collections.abc import Sequence

from liquidmm.evaluate.gallery import Icon, concept_names, read_icons, sample
from liquidmm.evaluate.metrics import Tally, named, words
from liquidmm.evaluate.report import Context
from liquidmm.icons.captions import style_words
from liquidmm.image_tokenizer import images as pixels


def captions(context: Context) -> None:
    """Describe trained icons and icons of held-out pairs; count right concepts and right styles.

    Raises:
        DataError: The icons are missing, a split is empty, or a picture is broken.
    """
    icons = read_icons(context.data)
    names = concept_names(icons)
    styles = {icon.style: words(style_words(icon.style)) for icon in icons}
    for split, figure in (("train", "trained"), ("held_out_pairs", "held_out_pairs")):
        chosen = sample(icons, split, context.n, context.seed)
        concept_hits, style_hits = [], []
        for _, chunk in context.chunks(figure, chosen):

            def make(missing: list[int], chunk: Sequence[Icon] = chunk) -> list[str]:
                return context.model().describe_many(
                    [pixels.open_image(chunk[i].image) for i in missing]
                )

            answers = context.journal.texts([icon.key for icon in chunk], make)
            for icon, caption in zip(chunk, answers, strict=True):
                # Captions may start with the kind of thing: "a bird: duck, noto style".
                spoken = named(caption.rpartition(":")[2], names)
                concept_hits.append(spoken is not None and names[spoken] == words(icon.name))
                style_hits.append(named(caption, styles) == icon.style)
        context.report.share(figure, Tally.of(concept_hits))
        context.report.share(f"{figure}_style", Tally.of(style_hits))
    context.report.number("chance", 100 / len(names), "%")
    context.report.number("chance_style", 100 / len(styles), "%")
