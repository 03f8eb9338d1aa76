"""Words that state who a person is: gender, and race, ethnicity or nationality.

A person who states an identity gets it, so these words keep debiasing away. Where a word is ambiguous the list errs on the side of
leaving a prompt alone.
"""

from __future__ import annotations

import re

_GENDER = """
female male females males feminine masculine woman man women men girl girls boy boys lady ladies gentleman gentlemen guy he she his her
him hers himself herself queen king queens kings prince princess duke duchess emperor empress baron baroness lord actress actresses
waitress waitresses hostess stewardess heiress goddess sorceress seamstress countess mother father mothers fathers mom mum dad daughter
son sister brother sisters brothers wife husband wives husbands bride groom aunt uncle niece nephew grandmother grandfather grandma
grandpa widow widower nun nuns witch ballerina cowboy cowgirl housewife maid barmaid milkmaid trans transgender nonbinary non-binary
sir madam mr mrs ms miss bachelor bachelorette boyfriend girlfriend
"""
_RACE = """
asian latino latina latinx hispanic caucasian african indian arab arabic jewish muslim european oriental aboriginal inuit maori indigenous
biracial dark-skinned light-skinned brown-skinned fair-skinned black-skinned white-skinned american
canadian mexican cuban brazilian argentine
argentinian chilean peruvian bolivian colombian venezuelan ecuadorian guatemalan jamaican haitian dominican british english scottish
welsh irish french german spanish portuguese italian greek dutch belgian swiss austrian polish czech slovak hungarian romanian bulgarian
serbian croatian bosnian albanian swedish norwegian danish finnish icelandic russian ukrainian georgian armenian turkish iranian persian
iraqi syrian lebanese israeli palestinian jordanian saudi yemeni egyptian moroccan algerian tunisian libyan sudanese ethiopian somali
kenyan ugandan tanzanian rwandan congolese nigerian ghanaian senegalese malian cameroonian zimbabwean zulu maasai afghan pakistani
bangladeshi nepali nepalese tibetan sri-lankan burmese thai vietnamese cambodian laotian malaysian malay indonesian filipino filipina
chinese taiwanese japanese korean mongolian kazakh uzbek samoan hawaiian polynesian cherokee navajo sioux apache aztec inca mayan viking
samurai geisha
"""
# Colours that are also races, unless they belong to a thing or to the kind of picture.
_COLORS = r"(?:white|black|brown)"
_THINGS = """
and & background backdrop wall walls coat coats shirt shirts dress dresses hat hats suit suits jacket apron uniform shoes boots gloves tie
gown robe scarf hair beard cat dog horse car paper marble snow sand stone light ink tea coffee board blackboard room house sky wine sheet
cane bear leather jeans trousers belt bag umbrella flag piano pepper hole
"""

_WORDS = re.compile(
    rf"(?<!\w)(?:{'|'.join((_GENDER + _RACE).split())}|\w+(?:woman|women|sman|smen|eman|emen)|policem[ae]n)(?!\w)", re.IGNORECASE
)
_COLOR = re.compile(rf"(?<!\w)(?<!and ){_COLORS}(?![\w-])(?! (?:{'|'.join(map(re.escape, _THINGS.split()))})(?!\w))", re.IGNORECASE)


def stated_identity(prompt: str) -> str | None:
    """The first word of `prompt` that states a gender, a race or a nationality; None where there is none."""
    found = [match for pattern in (_WORDS, _COLOR) if (match := pattern.search(prompt))]
    return min(found, key=lambda match: match.start()).group() if found else None
