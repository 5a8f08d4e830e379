"""Items of three reporting guidelines, by number and a few words of our own, with the fact that answers each.

CLAIM: Tejani et al. 2024 (doi:10.1148/ryai.240300). TRIPOD+AI: Collins et al. 2024 (doi:10.1136/bmj-2023-078378).
STARD-AI: Sounderajah et al. 2025 (doi:10.1038/s41591-025-03953-8), Table 2. The guidelines themselves say what an item
wants.
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
        "7 | preparation of data | prepared",
        "8a | the outcome | classes",
        "8b | who judged it | labels",
        "8c | whether judges were blind | ",
        "9a | choice of predictors | seen",
        "9b | the predictors | prepared",
        "9c | who took them | ",
        "10 | size of the sample | sizes",
        "11 | missing data | missing",
        "12a | how data are used | partitions",
        "12b | form of predictors | pixels",
        "12c | kind of model, why, steps of building | developed",
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
        "18f | code to be had | availability",
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
        "1 | title names AI and a measure of accuracy | model",
        "2 | summary | ",
        "3 | background, role of the test, where it fits in | ",
        "4 | aims and hypotheses | ",
        "5 | collected before or after | ",
        "6 | ethics | ",
        "7 | who and which images could take part | left_out",
        "8 | how they were found | ",
        "9 | where and when | sites",
        "10 | consecutive, random or by convenience | ",
        "11 | source of data, and whether collected for this | source",
        "12 | who annotated them, and how | labels",
        "13 | devices that took them, software behind the test | devices",
        "14 | taking and preparing of data | prepared",
        "15a | the test under study | tested",
        "15b | how it was developed | developed",
        "15c | cut-offs of the test | output",
        "15d | who uses it, with what training | ",
        "16a | the reference | ",
        "16b | why this reference | ",
        "16c | cut-offs of the reference | classes",
        "17a | readers of the test blind | blind",
        "17b | judges of the reference blind | ",
        "18 | how accuracy is estimated and compared | methods",
        "19 | results that are neither | review",
        "20 | missing results | missing",
        "21 | variation, planned or found | slices",
        "22 | size of the sample | sizes",
        "23 | errors, bias and fairness looked at | slices",
        "24 | flow of participants | flow",
        "25 | who is in each part | demographics",
        "26a | severity of disease | per_class",
        "26b | other diagnoses of those without | per_class",
        "27 | time between test and reference | ",
        "28 | data beside those of its later use | ",
        "29 | data from elsewhere beside those of training | external",
        "30 | test against reference, counted | confusion",
        "31 | accuracy with intervals | performance",
        "32 | harm done by the test | ",
        "33 | limitations | limitations",
        "34 | meaning for practice | ",
        "35 | ethics and fairness of its use | ",
        "36 | registration | ",
        "37 | protocol | protocol",
        "38 | money | ",
        "39 | interests in the model | ",
        "40a | data and code to be had | availability",
        "40b | answers kept, to be looked at again | kept",
    ),
)

CHECKLISTS = (CLAIM, TRIPOD_AI, STARD_AI)
