"""Items of three reporting guidelines, by number and a few words of our own, with the fact that answers each.

CLAIM: Tejani et al. 2024 (doi:10.1148/ryai.240300). TRIPOD+AI: Collins et al. 2024 (doi:10.1136/bmj-2023-078378).
STARD-AI: Sounderajah et al. 2025 (doi:10.1038/s41591-025-03953-8); its items have the numbers of STARD 2015 here
(doi:10.1136/bmj.h5527), those that it adds a plus. The guidelines themselves say what an item wants.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """`fact` names one of `facts.facts`; empty: no run can know it."""

    number: str
    about: str
    fact: str = ""


@dataclass(frozen=True)
class Checklist:
    file: str
    title: str
    source: str
    items: tuple[Item, ...]
    note: str = ""


def _items(*rows: str) -> tuple[Item, ...]:
    """From 'number | about | fact'."""
    return tuple(Item(*(part.strip() for part in row.split("|"))) for row in rows)


CLAIM = Checklist(
    "claim.md",
    "CLAIM, 2024 update",
    "https://doi.org/10.1148/ryai.240300",
    _items(
        "1 | title names the kind of AI | model",
        "2 | summary of the study | ",
        "3 | medical background and intended role | ",
        "4 | aims and hypotheses | ",
        "5 | looking forward or back in time | ",
        "6 | goal of the study | goal",
        "7 | where the images come from | source",
        "8 | who was taken in and left out | left_out",
        "9 | from files to pixels | pixels",
        "10 | which parts of the images are used | seen",
        "11 | how names were removed | pseudonyms",
        "12 | what is missing, and what was done | missing",
        "13 | how the images were taken | ",
        "14 | what counts as the truth | ",
        "15 | why this truth | ",
        "16 | who gave it | labels",
        "17 | truth of the test images | labels",
        "18 | agreement between readers | contradictions",
        "19 | how images were parted | partitions",
        "20 | what never lies on two sides | disjoint",
        "21 | how many are needed | sizes",
        "22 | the network | network",
        "23 | software and versions | software",
        "24 | where its weights began | start",
        "25 | how it was trained | training",
        "26 | how the final one was chosen | selection",
        "27 | several models together | ensemble",
        "28 | measures of performance | measures",
        "29 | their uncertainty, and tests | uncertainty",
        "30 | robustness | robustness",
        "31 | explanations | explanation",
        "32 | measured on data from the same place | internal",
        "33 | measured on data from elsewhere | external",
        "34 | registration of a trial | ",
        "35 | numbers on their way through the study | flow",
        "36 | who is in each part | demographics",
        "37 | performance | performance",
        "38 | performance with intervals | performance",
        "39 | what goes wrong | failures",
        "40 | limitations | limitations",
        "41 | what it means for practice | ",
        "42 | the protocol | protocol",
        "43 | software, model and data to be had | availability",
        "44 | money and its role | ",
    ),
)

TRIPOD_AI = Checklist(
    "tripod_ai.md",
    "TRIPOD+AI, 2024",
    "https://doi.org/10.1136/bmj-2023-078378",
    _items(
        "1 | title | model",
        "2 | summary | ",
        "3a | medical context | ",
        "3b | for whom, and who uses it | ",
        "3c | known inequalities of health | ",
        "4 | aims | goal",
        "5a | sources of data | source",
        "5b | dates of data | ",
        "6a | places | sites",
        "6b | who was taken in and left out | left_out",
        "6c | treatments | ",
        "7 | preparation of data | pixels",
        "8a | the outcome | classes",
        "8b | who judged it | labels",
        "8c | whether judges were blind | ",
        "9a | choice of predictors | seen",
        "9b | the predictors | pixels",
        "9c | who took them | ",
        "10 | size of the sample | sizes",
        "11 | missing data | missing",
        "12a | how data are used | partitions",
        "12b | form of predictors | pixels",
        "12c | kind of model, steps of building | training",
        "12d | differences between clusters | slices",
        "12e | measures of performance | measures",
        "12f | changes after evaluation | recalibration",
        "12g | how predictions are made | output",
        "13 | rare classes | imbalance",
        "14 | fairness | slices",
        "15 | output and thresholds | output",
        "16 | training and evaluation data beside each other | sizes",
        "17 | ethics | ",
        "18a | money | ",
        "18b | interests | ",
        "18c | protocol | protocol",
        "18d | registration | ",
        "18e | data to be had | availability",
        "18f | code to be had | software",
        "19 | patients and public | ",
        "20a | flow of participants | flow",
        "20b | who they are | demographics",
        "20c | development and evaluation data compared | demographics",
        "21 | numbers in each analysis | sizes",
        "22 | the whole model | availability",
        "23a | performance with intervals | performance",
        "23b | differences between clusters found | slices",
        "24 | updating | recalibration",
        "25 | interpretation | ",
        "26 | limitations | limitations",
        "27a | input of poor quality | ood",
        "27b | what the user must do | ",
        "27c | what comes next | ",
    ),
)

STARD_AI = Checklist(
    "stard_ai.md",
    "STARD-AI, 2025",
    "https://doi.org/10.1038/s41591-025-03953-8",
    _items(
        "1 | title names a measure of accuracy | measures",
        "2 | summary | ",
        "3 | background and role of the test | ",
        "4 | aims and hypotheses | ",
        "5 | collected before or after | ",
        "+ | ethics | ",
        "6 | who could take part | left_out",
        "7 | how they were found | ",
        "8 | where and when | sites",
        "9 | consecutive, random or by convenience | ",
        "+ | source of data | source",
        "+ | parts of data, and what keeps them apart | disjoint",
        "+ | preparation of data | pixels",
        "10a | the test under study | network",
        "10b | the reference | ",
        "11 | why this reference | ",
        "12a | cut-offs of the test | output",
        "12b | cut-offs of the reference | classes",
        "13a | readers of the test blind | blind",
        "13b | judges of the reference blind | ",
        "+ | development of the model | training",
        "+ | version of the model | version",
        "+ | who uses it, with what training | ",
        "14 | how accuracy is estimated | measures",
        "15 | results that are neither | review",
        "16 | missing results | missing",
        "17 | variation, planned or found | slices",
        "18 | size of the sample | sizes",
        "+ | fairness and bias | slices",
        "19 | flow of participants | flow",
        "20 | who they are | demographics",
        "21a | severity of disease | per_class",
        "21b | other diagnoses of those without | per_class",
        "22 | time between test and reference | ",
        "+ | data beside those of its later use | ",
        "23 | test against reference, counted | confusion",
        "24 | accuracy with intervals | performance",
        "25 | harm done by the test | ",
        "+ | errors looked at | failures",
        "26 | limitations | limitations",
        "27 | meaning for practice | ",
        "28 | registration | ",
        "29 | protocol | protocol",
        "30 | money | ",
        "+ | interests in the model | ",
        "+ | data, code and model to be had | availability",
    ),
    "Numbers are those of STARD 2015; + marks what STARD-AI adds, without its number.",
)

CHECKLISTS = (CLAIM, TRIPOD_AI, STARD_AI)
