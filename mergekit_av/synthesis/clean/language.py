"""The language of texts."""

import re
from typing import TYPE_CHECKING

from mergekit_av.errors import AVError

if TYPE_CHECKING:
    from lingua import LanguageDetector

# Below this probability of the wanted language a paragraph is in another. It is far down since a
# paragraph may be full of names and terms from elsewhere: of the built-in records' 1,600 English
# paragraphs the least English one has 0.02.
FOREIGN = 0.005
# A few words can be in any language: "See a doctor." is Maori to a detector. From so many characters
# on a paragraph is looked at; with so many left, what remains of it is looked at again.
MIN_CHARACTERS, MIN_REST = 40, 20
# What is quoted may be in any language: an answer may be how to say something in Polish.
QUOTED = re.compile(r"(?<!\w)['\"“„‘‚«].+?['\"”“’‘»](?!\w)", re.DOTALL)
# Japanese says as much in fewer characters.
WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


class LanguageCheck:
    """Find text that is not in one language, paragraph by paragraph, so that a text that changes its
    language halfway is found as well.

    Args:
        code: of the wanted language, ISO 639-1, e.g. `en`.

    Raises:
        AVError: no such language is known.
    """

    def __init__(self, code: str):
        from lingua import IsoCode639_1, Language, LanguageDetectorBuilder

        try:
            iso = IsoCode639_1.from_str(code)
        except ValueError:
            raise AVError(
                f"no language {code!r} is known: pass a code of ISO 639-1, e.g. en, de or zh"
            ) from None
        self._wanted: Language = Language.from_iso_code_639_1(iso)
        # Trigrams are enough for a paragraph, and take 70 MB where all n-grams take 900.
        self._detector: LanguageDetector = (
            LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()
        )

    def find(self, text: str) -> str | None:
        """Return the language of the first paragraph that is not in the wanted one; None if all are."""
        for paragraph in re.split(r"\n\s*\n", text):
            if self._is_foreign(paragraph):
                found = self._detector.detect_language_of(paragraph)
                return found.name.capitalize() if found else "no known language"
        return None

    def _is_foreign(self, paragraph: str) -> bool:
        if _length(paragraph) < MIN_CHARACTERS:
            return False
        unquoted = QUOTED.sub(" ", paragraph)
        # Names and borrowed nouns: an English sentence may say where to get a Pfändungsschutzkonto.
        rests = [unquoted, " ".join(word for word in unquoted.split() if not word[0].isupper())]
        looks = [paragraph, *(rest for rest in rests if _length(rest) >= MIN_REST)]
        confidence = self._detector.compute_language_confidence
        return all(confidence(look, self._wanted) < FOREIGN for look in looks)


def _length(text: str) -> int:
    return len(text.strip()) + 3 * len(WIDE.findall(text))
